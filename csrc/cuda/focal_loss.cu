// CUDA side of the focal losses: launches and registration. Kernels are in cuda/focal_loss.cuh.
#include "ops/focal_loss.h"

#include <algorithm>

#include "cuda/focal_loss.cuh"
#include "cuda/launch.h"

namespace cvops::cuda {
namespace {

// On the host: f.template operator()<kind, heatmap>(). Two kinds, not four, keep the library small.
template <typename F>
void dispatch_power(double exponent, bool heatmap, const F& f) {
  if (power_kind(exponent) == kPowerTwo) {
    if (heatmap) return f.template operator()<kPowerTwo, true>();
    return f.template operator()<kPowerTwo, false>();
  }
  if (heatmap) return f.template operator()<kPowerAny, true>();
  return f.template operator()<kPowerAny, false>();
}

std::optional<Tensor> contiguous(const std::optional<Tensor>& tensor) {
  return tensor ? std::optional<Tensor>(torch::stable::contiguous(*tensor)) : std::nullopt;
}

// A gradient for the kernels: one value for all (also an expanded one), or one per element.
struct Grad {
  Tensor tensor;
  int64_t step;
  bool wide;

  explicit Grad(const Tensor& grad) {
    bool expanded = true;
    for (int64_t i = 0; i < grad.dim(); ++i) expanded &= grad.stride(i) == 0 || grad.size(i) == 1;
    step = expanded ? 0 : 1;
    tensor = expanded ? grad : torch::stable::contiguous(grad);
    wide = grad.scalar_type() == compute_type(grad.scalar_type());
  }
};

// Where a forward puts its result: a loss per element, or partial sums that `finish` adds up.
template <typename In>
class Output {
 public:
  using T = compute_t<In>;
  Output(const Tensor& inputs, torch::headeronly::IntHeaderOnlyArrayRef shape, bool total, int64_t blocks)
      : total_(total), blocks_(static_cast<unsigned>(std::min<int64_t>(blocks, kFocalBlocks))) {
    tensor_ = total ? torch::stable::new_empty(inputs, {}, compute_type(inputs.scalar_type()))
                    : torch::stable::new_empty(inputs, shape);
    if (total) partial_ = torch::stable::new_empty(inputs, {std::max<int64_t>(blocks_, 1)}, ScalarType::Double);
  }

  // The grid is a function of the size alone when there are sums: the order of additions is fixed.
  unsigned blocks() const { return blocks_; }
  In* losses() { return total_ ? nullptr : tensor_.mutable_data_ptr<In>(); }
  double* partial() { return total_ ? partial_.mutable_data_ptr<double>() : nullptr; }

  Tensor finish(const DeviceScope& scope) {
    if (total_) {
      CVOPS_LAUNCH((focal_sum_kernel<T>), 1, kFocalThreads, 0, scope.stream(), partial_.const_data_ptr<double>(),
          blocks_, tensor_.template mutable_data_ptr<T>());
    }
    return tensor_;
  }

 private:
  bool total_;
  unsigned blocks_;
  Tensor tensor_, partial_;
};

template <typename In>
Tensor sigmoid_forward(const DeviceScope& scope, const Tensor& inputs, const FocalSource<compute_t<In>>& source,
    double gamma, bool heatmap, bool total) {
  using T = compute_t<In>;
  Output<In> out(inputs, inputs.sizes(), total, blocks_for(source.n, kFocalThreads * (16 / sizeof(In))));
  dispatch_power(gamma, heatmap, [&]<int kind, bool heatmap>() {
    CVOPS_LAUNCH((sigmoid_focal_kernel<kind, heatmap, In, T>), out.blocks(), kFocalThreads, 0, scope.stream(),
        inputs.const_data_ptr<In>(), source, power_from<T>(gamma), out.losses(), out.partial());
  });
  return out.finish(scope);
}

template <typename In>
Tensor sigmoid_backward(const DeviceScope& scope, const Tensor& grad_in, const Tensor& inputs,
    const FocalSource<compute_t<In>>& source, double gamma, bool heatmap) {
  using T = compute_t<In>;
  Tensor out = torch::stable::new_empty(inputs, inputs.sizes());
  const Grad grad(grad_in);
  const unsigned blocks = blocks_for(source.n, kFocalThreads * (16 / sizeof(In)));
  dispatch_power(gamma, heatmap, [&]<int kind, bool heatmap>() {
    CVOPS_LAUNCH((sigmoid_focal_backward_kernel<kind, heatmap, In, T>), blocks, kFocalThreads, 0, scope.stream(),
        grad.tensor.const_data_ptr(), grad.wide, grad.step, inputs.const_data_ptr<In>(), source, power_from<T>(gamma),
        largest_gradient<In, T>(), out.mutable_data_ptr<In>());
  });
  return out;
}

// The tensors of a sigmoid call, contiguous, and the kernel's view of them.
struct SigmoidArguments {
  Tensor inputs, targets;
  std::optional<Tensor> weight, class_alpha;

  template <typename In>
  FocalSource<compute_t<In>> source(
      const SigmoidFocalSizes& s, double alpha, std::optional<int64_t> ignore_index) const {
    using T = compute_t<In>;
    const ScalarType type = targets.scalar_type();
    FocalSource<T> f{};
    f.targets = targets.const_data_ptr();
    f.labels = s.indices                  ? kIndices
               : type == ScalarType::Long ? kIntLabels
               : type == ScalarType::Bool ? kBoolLabels
                                          : kFloatLabels;
    f.wide = type == compute_type(inputs.scalar_type());
    f.n = s.numel;
    f.classes = std::max<int64_t>(s.classes, 1);
    f.weight = weight ? weight->const_data_ptr<T>() : nullptr;
    f.row_weight = s.row_weight;
    f.class_alpha = class_alpha ? class_alpha->const_data_ptr<T>() : nullptr;
    f.alpha = T(alpha);
    f.ignores = ignore_index.has_value();
    f.ignore_index = ignore_index.value_or(0);
    return f;
  }
};

Tensor sigmoid_focal_loss_cuda(const Tensor& inputs, const Tensor& targets, const std::optional<Tensor>& weight,
    const std::optional<Tensor>& class_alpha, double alpha, double gamma, std::optional<int64_t> ignore_index,
    bool total) {
  const auto sizes = check_sigmoid_focal_loss(inputs, targets, weight, class_alpha, gamma, ignore_index);
  const DeviceScope scope(inputs);
  const SigmoidArguments a{
      packed(inputs), torch::stable::contiguous(targets), contiguous(weight), contiguous(class_alpha)};
  Tensor out;
  CVOPS_DISPATCH_FLOATS(inputs.scalar_type(), "sigmoid_focal_loss", [&] {
    out =
        sigmoid_forward<scalar_t>(scope, a.inputs, a.source<scalar_t>(sizes, alpha, ignore_index), gamma, false, total);
  });
  return out;
}

Tensor sigmoid_focal_loss_backward_cuda(const Tensor& grad, const Tensor& inputs, const Tensor& targets,
    const std::optional<Tensor>& weight, const std::optional<Tensor>& class_alpha, double alpha, double gamma,
    std::optional<int64_t> ignore_index) {
  const auto sizes = check_sigmoid_focal_loss(inputs, targets, weight, class_alpha, gamma, ignore_index);
  check_focal_grad("sigmoid_focal_loss_backward", grad, inputs, inputs);
  const DeviceScope scope(inputs);
  const SigmoidArguments a{
      packed(inputs), torch::stable::contiguous(targets), contiguous(weight), contiguous(class_alpha)};
  Tensor out;
  CVOPS_DISPATCH_FLOATS(inputs.scalar_type(), "sigmoid_focal_loss_backward", [&] {
    out =
        sigmoid_backward<scalar_t>(scope, grad, a.inputs, a.source<scalar_t>(sizes, alpha, ignore_index), gamma, false);
  });
  return out;
}

template <typename In>
FocalSource<compute_t<In>> heatmap_source(const Tensor& inputs, const Tensor& targets, double gamma) {
  using T = compute_t<In>;
  FocalSource<T> f{};
  f.targets = targets.const_data_ptr();
  f.wide = targets.scalar_type() == compute_type(inputs.scalar_type());
  f.n = inputs.numel();
  f.classes = 1;
  f.alpha = T(-1);
  f.heatmap_power = power_from<T>(gamma);
  return f;
}

Tensor gaussian_focal_loss_cuda(
    const Tensor& inputs_in, const Tensor& targets_in, double alpha, double gamma, bool total) {
  check_gaussian_focal_loss(inputs_in, targets_in, alpha, gamma);
  const DeviceScope scope(inputs_in);
  const Tensor inputs = packed(inputs_in), targets = torch::stable::contiguous(targets_in);
  Tensor out;
  CVOPS_DISPATCH_FLOATS(inputs.scalar_type(), "gaussian_focal_loss", [&] {
    out =
        sigmoid_forward<scalar_t>(scope, inputs, heatmap_source<scalar_t>(inputs, targets, gamma), alpha, true, total);
  });
  return out;
}

Tensor gaussian_focal_loss_backward_cuda(
    const Tensor& grad, const Tensor& inputs_in, const Tensor& targets_in, double alpha, double gamma) {
  check_gaussian_focal_loss(inputs_in, targets_in, alpha, gamma);
  check_focal_grad("gaussian_focal_loss_backward", grad, inputs_in, inputs_in);
  const DeviceScope scope(inputs_in);
  const Tensor inputs = packed(inputs_in), targets = torch::stable::contiguous(targets_in);
  Tensor out;
  CVOPS_DISPATCH_FLOATS(inputs.scalar_type(), "gaussian_focal_loss_backward", [&] {
    out =
        sigmoid_backward<scalar_t>(scope, grad, inputs, heatmap_source<scalar_t>(inputs, targets, gamma), alpha, true);
  });
  return out;
}

template <typename In>
SoftmaxSource<compute_t<In>> softmax_source(const Tensor& targets, const SoftmaxFocalSizes& s,
    const std::optional<Tensor>& class_alpha, double alpha, double gamma, int64_t ignore_index) {
  using T = compute_t<In>;
  return {targets.const_data_ptr<int64_t>(), s.batch * s.inner, s.classes, s.inner,
      class_alpha ? class_alpha->const_data_ptr<T>() : nullptr, T(alpha), ignore_index, power_from<T>(gamma)};
}

Tensor softmax_focal_loss_cuda(const Tensor& inputs_in, const Tensor& targets_in,
    const std::optional<Tensor>& class_alpha_in, double alpha, double gamma, int64_t ignore_index, bool total) {
  const SoftmaxFocalSizes s = check_softmax_focal_loss(inputs_in, targets_in, class_alpha_in, gamma);
  const DeviceScope scope(inputs_in);
  const Tensor inputs = torch::stable::contiguous(inputs_in), targets = torch::stable::contiguous(targets_in);
  const std::optional<Tensor> class_alpha = contiguous(class_alpha_in);
  const bool rows = s.inner == 1;
  Tensor result;
  CVOPS_DISPATCH_FLOATS(inputs.scalar_type(), "softmax_focal_loss", [&] {
    using T = compute_t<scalar_t>;
    const auto source = softmax_source<scalar_t>(targets, s, class_alpha, alpha, gamma, ignore_index);
    Output<scalar_t> out(
        inputs, targets.sizes(), total, blocks_for(source.positions, kFocalThreads / (rows ? kWarp : 1)));
    if (rows) {
      CVOPS_LAUNCH((softmax_focal_kernel<kWarp, scalar_t, T>), out.blocks(), kFocalThreads, 0, scope.stream(),
          inputs.const_data_ptr<scalar_t>(), source, out.losses(), out.partial());
    } else {
      CVOPS_LAUNCH((softmax_focal_kernel<1, scalar_t, T>), out.blocks(), kFocalThreads, 0, scope.stream(),
          inputs.const_data_ptr<scalar_t>(), source, out.losses(), out.partial());
    }
    result = out.finish(scope);
  });
  return result;
}

Tensor softmax_focal_loss_backward_cuda(const Tensor& grad_in, const Tensor& inputs_in, const Tensor& targets_in,
    const std::optional<Tensor>& class_alpha_in, double alpha, double gamma, int64_t ignore_index) {
  const SoftmaxFocalSizes s = check_softmax_focal_loss(inputs_in, targets_in, class_alpha_in, gamma);
  check_focal_grad("softmax_focal_loss_backward", grad_in, inputs_in, targets_in);
  const DeviceScope scope(inputs_in);
  const Tensor inputs = torch::stable::contiguous(inputs_in), targets = torch::stable::contiguous(targets_in);
  const std::optional<Tensor> class_alpha = contiguous(class_alpha_in);
  Tensor out = torch::stable::new_empty(inputs, inputs.sizes());
  const Grad grad(grad_in);
  const bool rows = s.inner == 1;
  CVOPS_DISPATCH_FLOATS(inputs.scalar_type(), "softmax_focal_loss_backward", [&] {
    using T = compute_t<scalar_t>;
    const auto source = softmax_source<scalar_t>(targets, s, class_alpha, alpha, gamma, ignore_index);
    const unsigned blocks = blocks_for(source.positions, kFocalThreads / (rows ? kWarp : 1));
    const auto launch = [&]<int lanes>() {
      CVOPS_LAUNCH((softmax_focal_backward_kernel<lanes, scalar_t, T>), blocks, kFocalThreads, 0, scope.stream(),
          grad.tensor.const_data_ptr(), grad.wide, grad.step, inputs.const_data_ptr<scalar_t>(), source,
          largest_gradient<scalar_t, T>(), out.mutable_data_ptr<scalar_t>());
    };
    if (rows) {
      launch.template operator()<kWarp>();
    } else {
      launch.template operator()<1>();
    }
  });
  return out;
}

}  // namespace
}  // namespace cvops::cuda

STABLE_TORCH_LIBRARY_IMPL(cvops, CVOPS_CUDA_KEY, m) {
  m.impl("sigmoid_focal_loss", TORCH_BOX(&cvops::cuda::sigmoid_focal_loss_cuda));
  m.impl("sigmoid_focal_loss_backward", TORCH_BOX(&cvops::cuda::sigmoid_focal_loss_backward_cuda));
  m.impl("gaussian_focal_loss", TORCH_BOX(&cvops::cuda::gaussian_focal_loss_cuda));
  m.impl("gaussian_focal_loss_backward", TORCH_BOX(&cvops::cuda::gaussian_focal_loss_backward_cuda));
  m.impl("softmax_focal_loss", TORCH_BOX(&cvops::cuda::softmax_focal_loss_cuda));
  m.impl("softmax_focal_loss_backward", TORCH_BOX(&cvops::cuda::softmax_focal_loss_backward_cuda));
}
