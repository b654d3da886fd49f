"""The miniature's world: captioned clips of simple things that move and sound, with exact ground truth."""

from ltx_trainer.world.caption import read_caption
from ltx_trainer.world.scene import MotionPath, Scene
from ltx_trainer.world.world import Clip, ClipBatch, Truth, World, WorldConfig

__all__ = ["Clip", "ClipBatch", "MotionPath", "Scene", "Truth", "World", "WorldConfig", "read_caption"]
