"""The control loop: policy and robot at the robot's rate, guards on every action, a log that survives a power cut."""
