// CPU side of the focal losses: tiles, threads, instruction set, registration. A tile of targets, of whatever kind,
// becomes a tile of labels in the compute type that stays in cache, so that one loop body serves labels, class indices
// and heatmaps, and half types need no converted copy. Sums are added tile by tile in order, whatever the threads.
#include "ops/focal_loss.h"

#include <algorithm>
#include <atomic>
#include <vector>

#include "cpu/fresh_memory.h"
#include "cpu/vec.h"

namespace cvops {
constexpr int64_t kPositions = 64;  // of softmax_focal_loss, per tile at most
}

#define CVOPS_BODY "cpu/focal_loss-inl.h"
#include "cpu/foreach_isa.h"

namespace cvops {
namespace {

constexpr int64_t kTile = 1024;
constexpr int64_t kTilesPerTask = 8;
constexpr int64_t kPositionsPerTask = 512, kLogits = 8192;  // of softmax_focal_loss; the second: of a tile of rows

// For each tile, body(first, count, tile number); threads take tiles in runs.
template <typename F>
void for_tiles(int64_t n, int64_t tile, int64_t per_task, const F& body) {
  torch::stable::parallel_for(0, (n + tile - 1) / tile, per_task, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) body(i * tile, std::min(tile, n - i * tile), i);
  });
}

// Inputs of the sigmoid form as a stream of tiles. S is the dtype of inputs.
template <typename S>
class SigmoidTiles {
 public:
  using T = compute_t<S>;
  struct Buffers {
    T x[kTile], t[kTile], weight[kTile], out[kTile], grad[kTile];
  };
  struct Tile {
    const T *x, *t, *positive, *negative;
    const T* weight;  // null: none
  };

  SigmoidTiles(const Tensor& inputs, const Tensor& targets)
      : x_(inputs.const_data_ptr<S>()), targets_(targets.const_data_ptr()), type_(targets.scalar_type()) {}

  // alpha of element i is periodic in the classes; a pointer into one period and a tile stands for all of them.
  void set_alpha(const std::optional<Tensor>& per_class, double alpha) {
    period_ = per_class ? std::max<int64_t>(per_class->numel(), 1) : 1;
    positive_.resize(period_ + kTile);
    negative_.resize(period_ + kTile);
    const T* values = per_class && per_class->numel() > 0 ? per_class->const_data_ptr<T>() : nullptr;
    for (int64_t i = 0; i < period_ + kTile; ++i) {
      const T a = values ? values[i % period_] : T(alpha);
      positive_[i] = a < T(0) ? T(1) : a;
      negative_[i] = a < T(0) ? T(1) : T(1) - a;
    }
  }

  void set_rows(const SigmoidFocalSizes& s, const std::optional<Tensor>& weight, std::optional<int64_t> ignore_index) {
    classes_ = std::max<int64_t>(s.classes, 1);
    indices_ = s.indices;
    row_weight_ = s.row_weight;
    weight_ = weight ? weight->const_data_ptr<T>() : nullptr;
    ignore_index_ = ignore_index;
  }

  void set_heatmap(double exponent) {
    heatmap_ = true;
    heatmap_power_ = power_from<T>(exponent);
  }

  Tile at(int64_t start, int64_t n, Buffers& buffers) {
    Tile tile{buffers.x, buffers.t, positive_.data() + start % period_, negative_.data() + start % period_, nullptr};
    if constexpr (std::is_same_v<S, T>) {
      tile.x = x_ + start;
    } else {
      CVOPS_CALL_ISA(focal_load, x_ + start, n, buffers.x);
    }
    if (indices_) {
      labels_of_indices(start, n, buffers.t);
    } else {
      tile.t = labels(start, n, buffers.t);
    }
    if (heatmap_) {
      T values[kTile];
      std::copy_n(tile.t, n, values);
      CVOPS_CALL_ISA(heatmap_rows, values, n, heatmap_power_, buffers.t, buffers.weight);
      tile.t = buffers.t;
      tile.weight = buffers.weight;
    } else if (weight_ && row_weight_) {
      for_rows(start, n,
          [&](int64_t row, int64_t from, int64_t count) { std::fill_n(buffers.weight + from, count, weight_[row]); });
      tile.weight = buffers.weight;
    } else if (weight_) {
      tile.weight = weight_ + start;
    }
    return tile;
  }

  // Ignored elements are 0, whatever their logits are.
  void mask(int64_t start, int64_t n, T* values) const {
    if (!ignore_index_ || type_ != ScalarType::Long) return;
    const int64_t *targets = static_cast<const int64_t*>(targets_), ignored = *ignore_index_;
    if (indices_) {
      for_rows(start, n, [&](int64_t row, int64_t from, int64_t count) {
        if (targets[row] == ignored) std::fill_n(values + from, count, T(0));
      });
    } else {
      for (int64_t i = 0; i < n; ++i) values[i] = targets[start + i] == ignored ? T(0) : values[i];
    }
  }

  void check_indices() const {
    CVOPS_CHECK(!out_of_range_, "sigmoid_focal_loss: class indices must be -1 (none) to ", classes_,
        " (none), or ignore_index, got one outside");
  }

 private:
  // body(row, first element of the tile, count) for each row of `classes` elements that the tile touches.
  template <typename F>
  void for_rows(int64_t start, int64_t n, const F& body) const {
    int64_t row = start / classes_, column = start % classes_;
    for (int64_t i = 0; i < n; ++row) {
      const int64_t count = std::min(classes_ - column, n - i);
      body(row, i, count);
      i += count;
      column = 0;
    }
  }

  void labels_of_indices(int64_t start, int64_t n, T* t) {
    const int64_t* index = static_cast<const int64_t*>(targets_);
    std::fill_n(t, n, T(0));
    bool bad = false;
    for (int64_t row = start / classes_, first = row * classes_ - start; first < n; ++row, first += classes_) {
      const int64_t c = index[row];
      bad |= (c < -1 || c > classes_) && !(ignore_index_ && c == *ignore_index_);
      const int64_t at = first + c;
      if (c >= 0 && c < classes_ && at >= 0 && at < n) t[at] = T(1);
    }
    if (bad) out_of_range_ = true;
  }

  const T* labels(int64_t start, int64_t n, T* t) const {
    if (type_ == ScalarType::Long) {
      const int64_t* from = static_cast<const int64_t*>(targets_) + start;
      for (int64_t i = 0; i < n; ++i) t[i] = from[i] != 0 ? T(1) : T(0);
    } else if (type_ == ScalarType::Bool) {
      const uint8_t* from = static_cast<const uint8_t*>(targets_) + start;
      for (int64_t i = 0; i < n; ++i) t[i] = from[i] != 0 ? T(1) : T(0);
    } else if (type_ == compute_type(type_)) {
      return static_cast<const T*>(targets_) + start;
    } else {
      CVOPS_CALL_ISA(focal_load, static_cast<const S*>(targets_) + start, n, t);
    }
    return t;
  }

  const S* x_;
  const void* targets_;
  ScalarType type_;
  int64_t classes_ = 1, period_ = 1;
  bool indices_ = false, row_weight_ = false, heatmap_ = false;
  std::vector<T> positive_, negative_;
  const T* weight_ = nullptr;
  std::optional<int64_t> ignore_index_;
  Power<T> heatmap_power_{};
  std::atomic<bool> out_of_range_ = false;
};

// The gradient of a loss in tiles: a scalar for all, or one per element in the dtype of inputs or the compute type.
template <typename S>
class GradTiles {
 public:
  using T = compute_t<S>;
  GradTiles(const Tensor& grad, int64_t numel) {
    bool expanded = true;
    for (int64_t i = 0; i < grad.dim(); ++i) expanded &= grad.stride(i) == 0 || grad.size(i) == 1;
    constant_ = expanded && numel > 0;
    grad_ = constant_ ? grad : torch::stable::contiguous(grad);
    wide_ = grad.scalar_type() == compute_type(grad.scalar_type());
    if (constant_) {
      value_ = wide_ ? *static_cast<const T*>(grad.const_data_ptr())
                     : static_cast<T>(*static_cast<const S*>(grad.const_data_ptr()));
    }
  }

  void fill(int64_t start, int64_t n, T* to) const {
    if (constant_) {
      std::fill_n(to, n, value_);
    } else if (wide_) {
      std::copy_n(static_cast<const T*>(grad_.const_data_ptr()) + start, n, to);
    } else {
      CVOPS_CALL_ISA(focal_load, static_cast<const S*>(grad_.const_data_ptr()) + start, n, to);
    }
  }

 private:
  Tensor grad_;
  bool constant_, wide_;
  T value_ = 0;
};

// Loss of each element, or their sum.
template <typename S>
Tensor sigmoid_forward(SigmoidTiles<S>& tiles, const Tensor& inputs, double gamma, bool total) {
  using T = compute_t<S>;
  const int64_t n = inputs.numel();
  std::vector<double> sums(total ? (n + kTile - 1) / kTile : 0);
  Tensor out = total ? torch::stable::new_empty(inputs, {}, compute_type(inputs.scalar_type()))
                     : new_output(inputs, inputs.sizes());
  S* losses = total ? nullptr : out.mutable_data_ptr<S>();
  const int kind = power_kind(gamma);
  const Power<T> power = power_from<T>(gamma);
  for_tiles(n, kTile, kTilesPerTask, [&](int64_t start, int64_t count, int64_t number) {
    typename SigmoidTiles<S>::Buffers buffers;
    const auto tile = tiles.at(start, count, buffers);
    T* loss = buffers.out;
    if constexpr (std::is_same_v<S, T>) {
      if (!total) loss = losses + start;
    }
    CVOPS_CALL_ISA(sigmoid_focal_rows, kind, tile.x, tile.t, tile.positive, tile.negative, count, power, loss);
    if (tile.weight) CVOPS_CALL_ISA(focal_multiply, loss, tile.weight, count);
    tiles.mask(start, count, loss);
    if (total) {
      CVOPS_CALL_ISA(focal_sum, loss, count, &sums[number]);
    } else if constexpr (!std::is_same_v<S, T>) {
      CVOPS_CALL_ISA(focal_round, loss, count, losses + start);
    }
  });
  if (total) {
    double sum = 0;
    for (const double s : sums) sum += s;
    *out.mutable_data_ptr<T>() = static_cast<T>(sum);
  }
  return out;
}

template <typename S>
Tensor sigmoid_backward(SigmoidTiles<S>& tiles, const Tensor& grad_in, const Tensor& inputs, double gamma) {
  using T = compute_t<S>;
  const int64_t n = inputs.numel();
  Tensor out = new_output(inputs, inputs.sizes());
  S* gradients = out.mutable_data_ptr<S>();
  const GradTiles<S> grad(grad_in, n);
  const int kind = power_kind(gamma);
  const Power<T> power = power_from<T>(gamma);
  for_tiles(n, kTile, kTilesPerTask, [&](int64_t start, int64_t count, int64_t) {
    typename SigmoidTiles<S>::Buffers buffers;
    const auto tile = tiles.at(start, count, buffers);
    grad.fill(start, count, buffers.grad);
    if (tile.weight) CVOPS_CALL_ISA(focal_multiply, buffers.grad, tile.weight, count);
    T* to = buffers.out;
    if constexpr (std::is_same_v<S, T>) to = gradients + start;
    CVOPS_CALL_ISA(sigmoid_focal_backward_rows, kind, buffers.grad, tile.x, tile.t, tile.positive, tile.negative, count,
        power, to);
    tiles.mask(start, count, to);
    if constexpr (!std::is_same_v<S, T>) CVOPS_CALL_ISA(focal_store, to, count, gradients + start);
  });
  return out;
}

std::optional<Tensor> contiguous(const std::optional<Tensor>& tensor) {
  return tensor ? std::optional<Tensor>(torch::stable::contiguous(*tensor)) : std::nullopt;
}

Tensor sigmoid_focal_loss_cpu(const Tensor& inputs_in, const Tensor& targets_in, const std::optional<Tensor>& weight_in,
    const std::optional<Tensor>& class_alpha_in, double alpha, double gamma, std::optional<int64_t> ignore_index,
    bool total) {
  const auto sizes = check_sigmoid_focal_loss(inputs_in, targets_in, weight_in, class_alpha_in, gamma, ignore_index);
  const Tensor inputs = torch::stable::contiguous(inputs_in), targets = torch::stable::contiguous(targets_in);
  const std::optional<Tensor> weight = contiguous(weight_in), class_alpha = contiguous(class_alpha_in);
  Tensor out;
  CVOPS_DISPATCH_FLOATS(inputs.scalar_type(), "sigmoid_focal_loss", [&] {
    SigmoidTiles<scalar_t> tiles(inputs, targets);
    tiles.set_alpha(class_alpha, alpha);
    tiles.set_rows(sizes, weight, ignore_index);
    out = sigmoid_forward(tiles, inputs, gamma, total);
    tiles.check_indices();
  });
  return out;
}

Tensor sigmoid_focal_loss_backward_cpu(const Tensor& grad, const Tensor& inputs_in, const Tensor& targets_in,
    const std::optional<Tensor>& weight_in, const std::optional<Tensor>& class_alpha_in, double alpha, double gamma,
    std::optional<int64_t> ignore_index) {
  const auto sizes = check_sigmoid_focal_loss(inputs_in, targets_in, weight_in, class_alpha_in, gamma, ignore_index);
  check_focal_grad("sigmoid_focal_loss_backward", grad, inputs_in, inputs_in);
  const Tensor inputs = torch::stable::contiguous(inputs_in), targets = torch::stable::contiguous(targets_in);
  const std::optional<Tensor> weight = contiguous(weight_in), class_alpha = contiguous(class_alpha_in);
  Tensor out;
  CVOPS_DISPATCH_FLOATS(inputs.scalar_type(), "sigmoid_focal_loss_backward", [&] {
    SigmoidTiles<scalar_t> tiles(inputs, targets);
    tiles.set_alpha(class_alpha, alpha);
    tiles.set_rows(sizes, weight, ignore_index);
    out = sigmoid_backward(tiles, grad, inputs, gamma);
    tiles.check_indices();
  });
  return out;
}

Tensor gaussian_focal_loss_cpu(
    const Tensor& inputs_in, const Tensor& targets_in, double alpha, double gamma, bool total) {
  check_gaussian_focal_loss(inputs_in, targets_in, alpha, gamma);
  const Tensor inputs = torch::stable::contiguous(inputs_in), targets = torch::stable::contiguous(targets_in);
  Tensor out;
  CVOPS_DISPATCH_FLOATS(inputs.scalar_type(), "gaussian_focal_loss", [&] {
    SigmoidTiles<scalar_t> tiles(inputs, targets);
    tiles.set_alpha(std::nullopt, -1);
    tiles.set_heatmap(gamma);
    out = sigmoid_forward(tiles, inputs, alpha, total);
  });
  return out;
}

Tensor gaussian_focal_loss_backward_cpu(
    const Tensor& grad, const Tensor& inputs_in, const Tensor& targets_in, double alpha, double gamma) {
  check_gaussian_focal_loss(inputs_in, targets_in, alpha, gamma);
  check_focal_grad("gaussian_focal_loss_backward", grad, inputs_in, inputs_in);
  const Tensor inputs = torch::stable::contiguous(inputs_in), targets = torch::stable::contiguous(targets_in);
  Tensor out;
  CVOPS_DISPATCH_FLOATS(inputs.scalar_type(), "gaussian_focal_loss_backward", [&] {
    SigmoidTiles<scalar_t> tiles(inputs, targets);
    tiles.set_alpha(std::nullopt, -1);
    tiles.set_heatmap(gamma);
    out = sigmoid_backward(tiles, grad, inputs, alpha);
  });
  return out;
}

// Positions of softmax_focal_loss in tiles. Logits of a position are contiguous (inner = 1: rows) or `inner` apart.
template <typename S>
class SoftmaxTiles {
 public:
  using T = compute_t<S>;
  struct Buffers {
    T above[kPositions], own[kPositions], others[kPositions], alpha[kPositions], loss[kPositions];
    std::vector<T> x, exps;
  };
  struct Tile {
    int64_t image, first, count;  // positions [first, first + count) of the image; with rows, image 0 has them all
    const int64_t* target;
    T* exps;         // of all logits, if their gradients are wanted
    int64_t stride;  // from class to class of exps; 1 for rows
  };

  SoftmaxTiles(const Tensor& inputs, const Tensor& targets, const SoftmaxFocalSizes& s,
      const std::optional<Tensor>& class_alpha, double alpha, int64_t ignore_index)
      : x_(inputs.const_data_ptr<S>()),
        targets_(targets.const_data_ptr<int64_t>()),
        rows_(s.inner == 1),
        classes_(s.classes),
        inner_(rows_ ? s.batch : s.inner),
        class_alpha_(class_alpha ? class_alpha->const_data_ptr<T>() : nullptr),
        alpha_(T(alpha)),
        ignore_index_(ignore_index),
        positions_(rows_ ? std::clamp<int64_t>(kLogits / std::max<int64_t>(s.classes, 1), 1, kPositions) : kPositions),
        tiles_per_image_((inner_ + positions_ - 1) / positions_),
        tiles_((rows_ ? 1 : s.batch) * tiles_per_image_) {}

  int64_t count() const { return tiles_; }
  int64_t tiles_per_task() const { return kPositionsPerTask / positions_; }

  // Fills the parts of every position of the tile, and its alpha. With `gradients`, exponentials lie where those will.
  Tile at(int64_t number, Buffers& b, S* gradients = nullptr) {
    Tile tile;
    tile.image = number / tiles_per_image_;
    tile.first = number % tiles_per_image_ * positions_;
    tile.count = std::min(positions_, inner_ - tile.first);
    tile.target = targets_ + tile.image * inner_ + tile.first;
    if (std::is_same_v<S, T> && gradients) {
      tile.exps = reinterpret_cast<T*>(gradients + offset(tile));
      tile.stride = inner_;
    } else {
      const bool one_class = !rows_ && !gradients;  // each class overwrites the one before
      b.exps.resize(positions_ * (one_class ? 1 : classes_));
      tile.exps = b.exps.data();
      tile.stride = one_class ? 0 : positions_;
    }
    const S* from = x_ + offset(tile);
    const T* x;
    int64_t stride = inner_;
    if constexpr (std::is_same_v<S, T>) {
      x = from;
    } else {
      b.x.resize(positions_ * classes_);
      if (rows_) {
        CVOPS_CALL_ISA(focal_load, from, tile.count * classes_, b.x.data());
      } else {
        for (int64_t c = 0; c < classes_; ++c) {
          CVOPS_CALL_ISA(focal_load, from + c * inner_, tile.count, b.x.data() + c * positions_);
        }
        stride = positions_;
      }
      x = b.x.data();
    }
    if (rows_) {
      CVOPS_CALL_ISA(softmax_parts_rows, x, tile.target, tile.count, classes_, tile.exps, b.above, b.own, b.others);
    } else {
      CVOPS_CALL_ISA(softmax_parts_columns, x, stride, tile.target, tile.count, classes_, tile.exps, tile.stride,
          b.above, b.own, b.others);
    }
    for (int64_t i = 0; i < tile.count; ++i) {
      const int64_t t = tile.target[i];
      const bool known = t >= 0 && t < classes_;
      if (!known && t != ignore_index_) out_of_range_ = true;
      b.alpha[i] = known && class_alpha_ ? class_alpha_[t] : alpha_;
    }
    return tile;
  }

  // Ignored positions are 0, whatever their logits are.
  void mask(const Tile& tile, T* loss) const {
    for (int64_t i = 0; i < tile.count; ++i) loss[i] = tile.target[i] == ignore_index_ ? T(0) : loss[i];
  }

  int64_t position(const Tile& tile) const { return tile.image * inner_ + tile.first; }

  // Gradients of a tile from its exponentials and the slopes in b.alpha.
  void store(const Tile& tile, const Buffers& b, S* gradients) const {
    T* values = tile.exps;
    if (rows_) {
      CVOPS_CALL_ISA(softmax_focal_grad_rows, tile.target, b.others, b.alpha, tile.count, classes_, values);
    } else {
      CVOPS_CALL_ISA(
          softmax_focal_grad_columns, tile.target, b.others, b.alpha, tile.count, classes_, values, tile.stride);
    }
    for (int64_t i = 0; i < tile.count; ++i) {
      if (tile.target[i] != ignore_index_) continue;
      for (int64_t c = 0; c < classes_; ++c) values[rows_ ? i * classes_ + c : c * tile.stride + i] = T(0);
    }
    if constexpr (!std::is_same_v<S, T>) {
      S* to = gradients + offset(tile);
      if (rows_) {
        CVOPS_CALL_ISA(focal_store, values, tile.count * classes_, to);
      } else {
        for (int64_t c = 0; c < classes_; ++c) {
          CVOPS_CALL_ISA(focal_store, values + c * tile.stride, tile.count, to + c * inner_);
        }
      }
    }
  }

  void check_indices() const {
    CVOPS_CHECK(!out_of_range_, "softmax_focal_loss: targets must be 0 to ", classes_ - 1,
        " or ignore_index = ", ignore_index_, ", got one outside");
  }

 private:
  int64_t offset(const Tile& tile) const {
    return rows_ ? tile.first * classes_ : tile.image * classes_ * inner_ + tile.first;
  }

  const S* x_;
  const int64_t* targets_;
  bool rows_;
  int64_t classes_, inner_;
  const T* class_alpha_;
  T alpha_;
  int64_t ignore_index_, positions_, tiles_per_image_, tiles_;
  std::atomic<bool> out_of_range_ = false;
};

// parallel_for over tiles with one set of buffers per task.
template <typename S, typename F>
void for_softmax_tiles(const SoftmaxTiles<S>& tiles, const F& body) {
  torch::stable::parallel_for(0, tiles.count(), tiles.tiles_per_task(), [&](int64_t begin, int64_t end) {
    typename SoftmaxTiles<S>::Buffers buffers;
    for (int64_t i = begin; i < end; ++i) body(i, buffers);
  });
}

Tensor softmax_focal_loss_cpu(const Tensor& inputs_in, const Tensor& targets_in,
    const std::optional<Tensor>& class_alpha_in, double alpha, double gamma, int64_t ignore_index, bool total) {
  const SoftmaxFocalSizes s = check_softmax_focal_loss(inputs_in, targets_in, class_alpha_in, gamma);
  const Tensor inputs = torch::stable::contiguous(inputs_in), targets = torch::stable::contiguous(targets_in);
  const std::optional<Tensor> class_alpha = contiguous(class_alpha_in);
  Tensor out = total ? torch::stable::new_empty(inputs, {}, compute_type(inputs.scalar_type()))
                     : torch::stable::new_empty(inputs, targets.sizes());
  CVOPS_DISPATCH_FLOATS(inputs.scalar_type(), "softmax_focal_loss", [&] {
    using T = compute_t<scalar_t>;
    SoftmaxTiles<scalar_t> tiles(inputs, targets, s, class_alpha, alpha, ignore_index);
    std::vector<double> sums(total ? tiles.count() : 0);
    scalar_t* losses = total ? nullptr : out.mutable_data_ptr<scalar_t>();
    const int kind = power_kind(gamma);
    const Power<T> power = power_from<T>(gamma);
    if (targets.numel() > 0) {
      for_softmax_tiles(tiles, [&](int64_t number, auto& b) {
        const auto tile = tiles.at(number, b);
        CVOPS_CALL_ISA(softmax_focal_finish, kind, b.above, b.own, b.others, b.alpha, tile.count, power, b.loss);
        tiles.mask(tile, b.loss);
        if (total) {
          CVOPS_CALL_ISA(focal_sum, b.loss, tile.count, &sums[number]);
        } else {
          CVOPS_CALL_ISA(focal_round, b.loss, tile.count, losses + tiles.position(tile));
        }
      });
    }
    tiles.check_indices();
    if (total) {
      double sum = 0;
      for (const double one : sums) sum += one;
      *out.mutable_data_ptr<T>() = static_cast<T>(sum);
    }
  });
  return out;
}

Tensor softmax_focal_loss_backward_cpu(const Tensor& grad_in, const Tensor& inputs_in, const Tensor& targets_in,
    const std::optional<Tensor>& class_alpha_in, double alpha, double gamma, int64_t ignore_index) {
  const SoftmaxFocalSizes s = check_softmax_focal_loss(inputs_in, targets_in, class_alpha_in, gamma);
  check_focal_grad("softmax_focal_loss_backward", grad_in, inputs_in, targets_in);
  const Tensor inputs = torch::stable::contiguous(inputs_in), targets = torch::stable::contiguous(targets_in);
  const std::optional<Tensor> class_alpha = contiguous(class_alpha_in);
  Tensor out = new_output(inputs, inputs.sizes());
  if (inputs.numel() == 0) return out;
  CVOPS_DISPATCH_FLOATS(inputs.scalar_type(), "softmax_focal_loss_backward", [&] {
    using T = compute_t<scalar_t>;
    SoftmaxTiles<scalar_t> tiles(inputs, targets, s, class_alpha, alpha, ignore_index);
    const GradTiles<scalar_t> grad(grad_in, targets.numel());
    scalar_t* gradients = out.mutable_data_ptr<scalar_t>();
    const int kind = power_kind(gamma);
    const Power<T> power = power_from<T>(gamma);
    for_softmax_tiles(tiles, [&](int64_t number, auto& b) {
      const auto tile = tiles.at(number, b, gradients);
      CVOPS_CALL_ISA(softmax_focal_slopes, kind, b.above, b.own, b.others, b.alpha, tile.count, power);
      grad.fill(tiles.position(tile), tile.count, b.loss);
      CVOPS_CALL_ISA(focal_multiply, b.alpha, b.loss, tile.count);
      tiles.store(tile, b, gradients);
    });
    tiles.check_indices();
  });
  return out;
}

}  // namespace
}  // namespace cvops

STABLE_TORCH_LIBRARY_IMPL(cvops, CPU, m) {
  m.impl("sigmoid_focal_loss", TORCH_BOX(&cvops::sigmoid_focal_loss_cpu));
  m.impl("sigmoid_focal_loss_backward", TORCH_BOX(&cvops::sigmoid_focal_loss_backward_cpu));
  m.impl("gaussian_focal_loss", TORCH_BOX(&cvops::gaussian_focal_loss_cpu));
  m.impl("gaussian_focal_loss_backward", TORCH_BOX(&cvops::gaussian_focal_loss_backward_cpu));
  m.impl("softmax_focal_loss", TORCH_BOX(&cvops::softmax_focal_loss_cpu));
  m.impl("softmax_focal_loss_backward", TORCH_BOX(&cvops::softmax_focal_loss_backward_cpu));
}
