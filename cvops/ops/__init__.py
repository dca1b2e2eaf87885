"""The ops. One file per stem: wrapper, module, fake, autograd, autocast, vmap, and a slow pure-torch reference."""

from cvops.ops.batch_norm import fold_batch_norm, frozen_batch_norm
from cvops.ops.box_iou import box_area, box_convert, box_iou, complete_box_iou, distance_box_iou, generalized_box_iou
from cvops.ops.corner_pool import CornerPool, corner_pool
from cvops.ops.deform_conv2d import DeformConv2d, deform_conv2d
from cvops.ops.depthwise_conv2d import DepthwiseConv2d, depthwise_conv2d
from cvops.ops.drop_block import DropBlock2d, DropBlock3d, drop_block2d, drop_block3d
from cvops.ops.drop_path import (
    DropChannel,
    DropPath,
    ScheduledDropPath,
    drop_channel,
    drop_path,
    scheduled_drop_path,
)
from cvops.ops.focal_loss import (
    GaussianFocalLoss,
    SigmoidFocalLoss,
    SoftmaxFocalLoss,
    gaussian_focal_loss,
    sigmoid_focal_loss,
    softmax_focal_loss,
)
from cvops.ops.heatmap_peaks import HeatmapPeaks, heatmap_peaks
from cvops.ops.iou_loss import (
    CompleteBoxIoULoss,
    DistanceBoxIoULoss,
    GeneralizedBoxIoULoss,
    IoULoss,
    complete_box_iou_loss,
    distance_box_iou_loss,
    generalized_box_iou_loss,
    giou_loss,
    iou_loss,
)
from cvops.ops.mask_paste import mask_paste
from cvops.ops.match_boxes import match_boxes
from cvops.ops.nms import batched_nms, batched_nms_padded, matrix_nms, multiclass_nms, nms, nms_padded, soft_nms
from cvops.ops.ps_roi_align import PSRoIAlign, ps_roi_align
from cvops.ops.ps_roi_pool import PSRoIPool, ps_roi_pool
from cvops.ops.roi_align import MultiScaleRoIAlign, RoIAlign, multiscale_roi_align, roi_align
from cvops.ops.roi_pool import RoIPool, roi_pool

__all__ = [
    "CompleteBoxIoULoss",
    "CornerPool",
    "DeformConv2d",
    "DepthwiseConv2d",
    "DistanceBoxIoULoss",
    "DropBlock2d",
    "DropBlock3d",
    "DropChannel",
    "DropPath",
    "GaussianFocalLoss",
    "GeneralizedBoxIoULoss",
    "HeatmapPeaks",
    "IoULoss",
    "MultiScaleRoIAlign",
    "PSRoIAlign",
    "PSRoIPool",
    "RoIAlign",
    "RoIPool",
    "ScheduledDropPath",
    "SigmoidFocalLoss",
    "SoftmaxFocalLoss",
    "batched_nms",
    "batched_nms_padded",
    "box_area",
    "box_convert",
    "box_iou",
    "complete_box_iou",
    "complete_box_iou_loss",
    "corner_pool",
    "deform_conv2d",
    "depthwise_conv2d",
    "distance_box_iou",
    "distance_box_iou_loss",
    "drop_block2d",
    "drop_block3d",
    "drop_channel",
    "drop_path",
    "fold_batch_norm",
    "frozen_batch_norm",
    "gaussian_focal_loss",
    "generalized_box_iou",
    "generalized_box_iou_loss",
    "giou_loss",
    "heatmap_peaks",
    "iou_loss",
    "mask_paste",
    "match_boxes",
    "matrix_nms",
    "multiclass_nms",
    "multiscale_roi_align",
    "nms",
    "nms_padded",
    "ps_roi_align",
    "ps_roi_pool",
    "roi_align",
    "roi_pool",
    "scheduled_drop_path",
    "sigmoid_focal_loss",
    "soft_nms",
    "softmax_focal_loss",
]
