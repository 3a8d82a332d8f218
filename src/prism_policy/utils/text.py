"""Values that others wrote, in a sentence; the robot's side writes them alike."""

from prism_client.text import file_name as file_name
from prism_client.text import listed as listed
from prism_client.text import one_line as one_line
from prism_client.text import parsed_json as parsed_json
from prism_client.text import quoted as quoted
from prism_client.text import shown as shown
