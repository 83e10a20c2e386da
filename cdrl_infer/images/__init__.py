"""Pictures to tensors and back: files and folders, the rules for pictures, callers' images and masks."""

from cdrl_infer.images.files import FORMATS as FORMATS
from cdrl_infer.images.files import SUFFIXES as SUFFIXES
from cdrl_infer.images.files import Header as Header
from cdrl_infer.images.files import decode_image as decode_image
from cdrl_infer.images.files import open_image as open_image
from cdrl_infer.images.files import read_header as read_header
from cdrl_infer.images.folders import Folder as Folder
from cdrl_infer.images.folders import find_images as find_images
from cdrl_infer.images.folders import image_files as image_files
from cdrl_infer.images.given import as_tensor as as_tensor
from cdrl_infer.images.given import check_picture as check_picture
from cdrl_infer.images.given import each_image as each_image
from cdrl_infer.images.given import layout as layout
from cdrl_infer.images.given import read_images as read_images
from cdrl_infer.images.masks import read_masks as read_masks
from cdrl_infer.images.output import captioned as captioned
from cdrl_infer.images.output import make_grid as make_grid
from cdrl_infer.images.output import save_gif as save_gif
from cdrl_infer.images.output import save_png as save_png
from cdrl_infer.images.output import to_numpy as to_numpy
from cdrl_infer.images.output import to_pil as to_pil
from cdrl_infer.images.output import to_uint8 as to_uint8
from cdrl_infer.images.output import to_unit as to_unit
from cdrl_infer.images.output import viewing_scale as viewing_scale
from cdrl_infer.images.rules import MODES as MODES
from cdrl_infer.images.rules import to_channels as to_channels
