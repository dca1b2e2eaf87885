"""The model zoo: importing this registers every family. A new family is its file and one line here."""

from cvops.models import amoebanet as amoebanet
from cvops.models import centernet as centernet
from cvops.models import centernet_mobilenetv3 as centernet_mobilenetv3
from cvops.models import centernet_triplets as centernet_triplets
from cvops.models import cornernet as cornernet
from cvops.models import efficientdet as efficientdet
from cvops.models import efficientnet as efficientnet
from cvops.models import faster_rcnn as faster_rcnn
from cvops.models import fcos as fcos
from cvops.models import inception_resnet as inception_resnet
from cvops.models import mobilenet_v2 as mobilenet_v2
from cvops.models import mobilenet_v3 as mobilenet_v3
from cvops.models import nasnet as nasnet
from cvops.models import resnet as resnet
from cvops.models import resnext as resnext
from cvops.models import retinanet as retinanet
from cvops.models import rfcn as rfcn
from cvops.models import rpn as rpn
from cvops.models import senet as senet
from cvops.models import ssd as ssd
from cvops.models import xception as xception
from cvops.models import yolov4 as yolov4
from cvops.models.checkpoint import load_model, save_model
from cvops.models.classifier import ImageClassifier
from cvops.models.config import Accuracy, ModelConfig, Paper, Preprocess
from cvops.models.macs import count_macs
from cvops.models.model import Backbone, FeatureInfo, Model
from cvops.models.registry import (
    Family,
    ModelInfo,
    UnknownModelError,
    Variant,
    create_backbone,
    create_model,
    find_weights,
    list_models,
    load_backbone,
    model_info,
    register,
)
from cvops.models.weights import KeyMap, PackagedWeights, WeightsError, WeightsReport, load_weights, read_checkpoint

__all__ = [
    "Accuracy",
    "Backbone",
    "Family",
    "FeatureInfo",
    "ImageClassifier",
    "KeyMap",
    "Model",
    "ModelConfig",
    "ModelInfo",
    "PackagedWeights",
    "Paper",
    "Preprocess",
    "UnknownModelError",
    "Variant",
    "WeightsError",
    "WeightsReport",
    "count_macs",
    "create_backbone",
    "create_model",
    "find_weights",
    "list_models",
    "load_backbone",
    "load_model",
    "load_weights",
    "model_info",
    "read_checkpoint",
    "register",
    "save_model",
]
