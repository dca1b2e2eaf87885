// Schemas and argument checks of the focal losses. `total` asks for the sum, a scalar in the compute type, instead of
// the loss of each element in the dtype of inputs. Means, dtypes and shapes beyond these are in
// cvops/ops/focal_loss.py.
#include "ops/focal_loss.h"

namespace cvops {
namespace {

const char* name_of(ScalarType type) {
  return torch::headeronly::toString(type);
}

void check_class_alpha(
    const char* op, const std::optional<Tensor>& class_alpha, int64_t classes, const Tensor& inputs) {
  if (!class_alpha) return;
  CVOPS_CHECK(class_alpha->dim() == 1 && class_alpha->size(0) == classes, op, ": alpha must be a number or [", classes,
      "], one per class, got ", shape_of(*class_alpha));
  const ScalarType type = compute_type(inputs.scalar_type());
  CVOPS_CHECK(class_alpha->scalar_type() == type, op, ": alpha must be ", name_of(type), ", got ",
      name_of(class_alpha->scalar_type()));
  CVOPS_CHECK(class_alpha->device() == inputs.device(), op, ": alpha must be on the device of inputs");
}

bool rows_of(const Tensor& tensor, const Tensor& inputs) {
  if (tensor.dim() != inputs.dim() - 1) return false;
  for (int64_t i = 0; i < tensor.dim(); ++i) {
    if (tensor.size(i) != inputs.size(i)) return false;
  }
  return true;
}

bool is_float(ScalarType type) {
  return type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::Half ||
         type == ScalarType::BFloat16;
}

}  // namespace

SigmoidFocalSizes check_sigmoid_focal_loss(const Tensor& inputs, const Tensor& targets,
    const std::optional<Tensor>& weight, const std::optional<Tensor>& class_alpha, double gamma,
    std::optional<int64_t> ignore_index) {
  constexpr const char* op = "sigmoid_focal_loss";
  check_floating(op, "inputs", inputs);
  CVOPS_CHECK(gamma >= 0, op, ": gamma must be >= 0, got ", gamma);
  CVOPS_CHECK(targets.device() == inputs.device(), op, ": inputs and targets must be on one device");
  const ScalarType type = targets.scalar_type();
  SigmoidFocalSizes s;
  s.indices = rows_of(targets, inputs);
  CVOPS_CHECK(s.indices || same_shape(targets, inputs), op, ": targets must have the shape of inputs ",
      shape_of(inputs), ", or all but its last dimension for class indices, got ", shape_of(targets));
  if (s.indices) {
    CVOPS_CHECK(type == ScalarType::Long, op, ": class indices must be int64, got ", name_of(type));
  } else if (is_float(type)) {
    CVOPS_CHECK(type == inputs.scalar_type() || type == compute_type(inputs.scalar_type()), op,
        ": floating targets must be ", name_of(inputs.scalar_type()), " or ",
        name_of(compute_type(inputs.scalar_type())), ", got ", name_of(type));
    CVOPS_CHECK(!ignore_index, op, ": ignore_index needs integer targets, got ", name_of(type));
  } else {
    CVOPS_CHECK(type == ScalarType::Long || type == ScalarType::Bool, op,
        ": targets must be floating, int64 or bool, got ", name_of(type));
  }
  s.numel = inputs.numel();
  s.classes = inputs.dim() > 0 ? inputs.size(inputs.dim() - 1) : 1;
  s.row_weight = false;
  if (weight) {
    s.row_weight = rows_of(*weight, inputs);
    CVOPS_CHECK(s.row_weight || same_shape(*weight, inputs), op, ": weight must have the shape of inputs ",
        shape_of(inputs), ", or all but its last dimension, got ", shape_of(*weight));
    const ScalarType wanted = compute_type(inputs.scalar_type());
    CVOPS_CHECK(weight->scalar_type() == wanted, op, ": weight must be ", name_of(wanted), ", got ",
        name_of(weight->scalar_type()));
    CVOPS_CHECK(weight->device() == inputs.device(), op, ": weight must be on the device of inputs");
  }
  check_class_alpha(op, class_alpha, s.classes, inputs);
  return s;
}

void check_gaussian_focal_loss(const Tensor& inputs, const Tensor& targets, double alpha, double gamma) {
  constexpr const char* op = "gaussian_focal_loss";
  check_floating(op, "inputs", inputs);
  CVOPS_CHECK(alpha >= 0, op, ": alpha must be >= 0, got ", alpha);
  CVOPS_CHECK(gamma >= 0, op, ": gamma must be >= 0, got ", gamma);
  CVOPS_CHECK(same_shape(targets, inputs), op, ": targets must have the shape of inputs ", shape_of(inputs), ", got ",
      shape_of(targets));
  CVOPS_CHECK(targets.device() == inputs.device(), op, ": inputs and targets must be on one device");
  const ScalarType type = targets.scalar_type(), own = inputs.scalar_type();
  CVOPS_CHECK(type == own || type == compute_type(own), op, ": targets must be ", name_of(own), " or ",
      name_of(compute_type(own)), ", got ", name_of(type));
}

SoftmaxFocalSizes check_softmax_focal_loss(
    const Tensor& inputs, const Tensor& targets, const std::optional<Tensor>& class_alpha, double gamma) {
  constexpr const char* op = "softmax_focal_loss";
  check_floating(op, "inputs", inputs);
  CVOPS_CHECK(gamma >= 0, op, ": gamma must be >= 0, got ", gamma);
  CVOPS_CHECK(inputs.dim() == 3, op, ": inputs must be [N, C, positions], got ", shape_of(inputs));
  const SoftmaxFocalSizes s{inputs.size(0), inputs.size(1), inputs.size(2)};
  CVOPS_CHECK(targets.dim() == 2 && targets.size(0) == s.batch && targets.size(1) == s.inner, op, ": targets must be [",
      s.batch, ", ", s.inner, "], got ", shape_of(targets));
  CVOPS_CHECK(s.classes > 0 || s.batch * s.inner == 0, op, ": inputs must have at least one class");
  CVOPS_CHECK(targets.scalar_type() == ScalarType::Long, op, ": targets must be int64 class indices, got ",
      name_of(targets.scalar_type()));
  CVOPS_CHECK(targets.device() == inputs.device(), op, ": inputs and targets must be on one device");
  check_class_alpha(op, class_alpha, s.classes, inputs);
  return s;
}

void check_focal_grad(const char* op, const Tensor& grad, const Tensor& inputs, const Tensor& like) {
  const bool scalar = grad.dim() == 0 && like.dim() != 0;
  CVOPS_CHECK(grad.dim() == 0 || same_shape(grad, like), op, ": grad must be a scalar or ", shape_of(like), ", got ",
      shape_of(grad));
  const ScalarType own = inputs.scalar_type(), wide = compute_type(own), type = grad.scalar_type();
  CVOPS_CHECK(type == wide || (!scalar && type == own), op, ": grad must be ", name_of(scalar ? wide : own), ", got ",
      name_of(type));
  CVOPS_CHECK(grad.device() == inputs.device(), op, ": grad and inputs must be on one device");
}

}  // namespace cvops

STABLE_TORCH_LIBRARY_FRAGMENT(cvops, m) {
  m.def(
      "sigmoid_focal_loss(Tensor inputs, Tensor targets, Tensor? weight, Tensor? class_alpha, float alpha, "
      "float gamma, int? ignore_index, bool total) -> Tensor");
  m.def(
      "sigmoid_focal_loss_backward(Tensor grad, Tensor inputs, Tensor targets, Tensor? weight, Tensor? class_alpha, "
      "float alpha, float gamma, int? ignore_index) -> Tensor");
  m.def("gaussian_focal_loss(Tensor inputs, Tensor targets, float alpha, float gamma, bool total) -> Tensor");
  m.def("gaussian_focal_loss_backward(Tensor grad, Tensor inputs, Tensor targets, float alpha, float gamma) -> Tensor");
  m.def(
      "softmax_focal_loss(Tensor inputs, Tensor targets, Tensor? class_alpha, float alpha, float gamma, "
      "int ignore_index, bool total) -> Tensor");
  m.def(
      "softmax_focal_loss_backward(Tensor grad, Tensor inputs, Tensor targets, Tensor? class_alpha, float alpha, "
      "float gamma, int ignore_index) -> Tensor");
}
