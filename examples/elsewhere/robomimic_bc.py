"""PRISM as the visual core of robomimic's observation encoder: robomimic_bc.py DEMOS.hdf5 [UPDATES]."""

import sys

import torch
from robomimic.algo import algo_factory
from robomimic.config import config_factory
from robomimic.models.base_nets import ConvBase
from robomimic.models.obs_core import EncoderCore
from robomimic.utils import file_utils, obs_utils, train_utils

import prism_policy as pp


class PrismCore(EncoderCore, ConvBase):
    """A core that robomimic finds by its name; PRISM crops and normalises inside, so there is no randomizer."""

    def __init__(self, input_shape, encoder="prism"):
        super().__init__(input_shape=input_shape)
        self.nets = pp.ImageEncoder(pp.presets.encoder(encoder), *input_shape[1:])

    def output_shape(self, input_shape):
        return [self.nets.out_dim]


path, updates = sys.argv[1], int((*sys.argv[2:], 20)[0])
config = config_factory("bc")
with config.values_unlocked():
    config.train.data = path
    config.observation.modalities.obs.rgb = ["agentview_image", "robot0_eye_in_hand_image"]
    config.observation.modalities.obs.low_dim = ["robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos"]
    config.observation.encoder.rgb.core_class = "PrismCore"
    config.observation.encoder.rgb.core_kwargs = {"encoder": "prism"}
obs_utils.initialize_obs_utils_with_config(config)
shapes = file_utils.get_shape_metadata_from_dataset(path, all_obs_keys=config.all_obs_keys)
model = algo_factory("bc", config, shapes["all_shapes"], shapes["ac_dim"], torch.device("cpu"))
data, _ = train_utils.load_data_for_training(config, shapes["all_obs_keys"])
for _, raw in zip(range(updates), torch.utils.data.DataLoader(data, 8, shuffle=True), strict=False):
    batch = model.postprocess_batch_for_training(model.process_batch_for_training(raw), None)
    print(f"loss {model.train_on_batch(batch, epoch=0)['losses']['action_loss'].item():.3f}")
