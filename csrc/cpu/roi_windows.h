// The loops over threads that the RoI ops share: forward over windows of NCHW maps, backward over bands of gradient
// maps. Included after the body of the op (cpu/foreach_isa.h), which includes cpu/roi_window-inl.h.

#include <algorithm>

#include "cpu/roi_maps.h"
#include "cpu/roi_tables.h"
#include "cpu/scratch.h"

namespace cvops {
namespace {

// Maps [n, c, h, w] of one or more levels; map `level * n + image` of RoiGroups is image `image` of level `level`.
template <typename S>
struct MapsOf {
  int64_t n, c;
  struct Level {
    S* data;
    int64_t h, w;
  };
  std::vector<Level> levels;

  const Level& level(int64_t map) const { return levels[map / n]; }
  // Channel c of the map.
  S* plane(int64_t map, int64_t c_) const { return level(map).data + (map % n * c + c_) * level(map).h * level(map).w; }
};

// RoIs order[first] to order[last - 1] of one map, and 16 channels. `whole`: the map is packed once for all of them,
// else the rows and columns of each RoI are, one row of the window per tap.
struct WindowTask {
  int64_t map, block, first, last;
  bool whole;
};

struct WindowPlan {
  std::vector<WindowTask> tasks;
  int64_t window = 0, taps = 0;  // the largest, in elements

  template <typename S, typename T>
  WindowPlan(const MapsOf<S>& maps, const RoiGroups& groups, const RoiTables<T>& tables) {
    const int64_t blocks = ceil_div(maps.c, kWindowChannels), threads = torch::stable::get_num_threads();
    std::vector<WindowTask> of_block;
    for (size_t map = 0; map + 1 < groups.first.size(); ++map) {
      const int64_t first = groups.first[map], last = groups.first[map + 1];
      int64_t pixels = 0, most = 0;
      for (int64_t i = first; i < last; ++i) {
        const auto y = tables.y(groups.order[i]), x = tables.x(groups.order[i]);
        const int64_t size = y.count() * (x.high - x.low);
        pixels += size, most = std::max(most, size), taps = std::max(taps, y.count());
      }
      const int64_t all = maps.level(map).h * maps.level(map).w;
      const bool whole = pixels > all && all * kWindowChannels * static_cast<int64_t>(sizeof(T)) <= kMostWindowBytes;
      window = std::max(window, (whole ? all : most) * kWindowChannels);
      const int64_t parts = whole ? ceil_div(2 * threads, blocks * maps.n) : ceil_div(last - first, 8);
      const int64_t part = std::max<int64_t>(ceil_div(last - first, std::max<int64_t>(parts, 1)), 1);
      for (int64_t i = first; i < last; i += part) {
        of_block.push_back({static_cast<int64_t>(map), 0, i, std::min(i + part, last), whole});
      }
    }
    for (int64_t block = 0; block < blocks; ++block) {
      for (WindowTask task : of_block) {
        task.block = block;
        tasks.push_back(task);
      }
    }
  }
};

// visit(k, c, channels, window, row, y, x, own) for every RoI and block of channels: `window` is such that pixel
// (y.taps[i].at, x.taps[j].at) is at window + y * row + 16 * x; `own` is the thread's, of `own_size` T.
template <typename S, typename T, typename Visit>
void for_each_window(const MapsOf<const S>& maps, const RoiGroups& groups, const RoiTables<T>& tables, int64_t own_size,
    const Visit& visit) {
  const WindowPlan plan(maps, groups, tables);
  Scratch<T> windows(plan.window), owns(own_size);
  Scratch<RoiTap<T>> tap_rows(plan.taps);
  torch::stable::parallel_for(0, static_cast<int64_t>(plan.tasks.size()), 1, [&](int64_t from, int64_t to) {
    T *window = windows.take(), *own = owns.take();
    RoiTap<T>* taps = tap_rows.take();
    for (int64_t number = from; number < to; ++number) {
      const WindowTask& task = plan.tasks[number];
      const int64_t h = maps.level(task.map).h, w = maps.level(task.map).w;
      const int64_t c = task.block * kWindowChannels, channels = std::min(kWindowChannels, maps.c - c);
      const S* map = maps.plane(task.map, c);
      if (task.whole) CVOPS_CALL_ISA(pack_window, map, h * w, channels, h * w, window);
      for (int64_t i = task.first; i < task.last; ++i) {
        const int64_t k = groups.order[i];
        AxisTaps<T> y = tables.y(k);
        const AxisTaps<T> x = tables.x(k);
        int64_t row = w * kWindowChannels, left = 0;
        if (!task.whole) {
          left = x.low, row = (x.high - x.low) * kWindowChannels;
          for (int64_t t = 0; t < y.count(); ++t) {
            const S* line = map + y.taps[t].at * w + left;
            CVOPS_CALL_ISA(pack_window, line, h * w, channels, x.high - x.low, window + t * row);
            taps[t] = {static_cast<int32_t>(t), y.taps[t].weight};
          }
          y.taps = taps;
        }
        visit(k, c, channels, window - left * kWindowChannels, row, y, x, own);
      }
    }
  });
}

// add(k, c, channels, first, last, window, own) for every RoI of every band, in order: adds the gradient of RoI k to
// rows [first, last) and 16 channels of a map, window[(y - first) * w + x][16], which is then stored.
template <typename S, typename T, typename Add>
void for_each_band(const MapsOf<S>& maps, bool channels_last, const RoiGroups& groups, const RoiTables<T>& tables,
    int64_t own_size, const Add& add) {
  const int64_t blocks = ceil_div(maps.c, kWindowChannels);
  for (size_t level = 0; level < maps.levels.size(); ++level) {
    const int64_t h = maps.levels[level].h, w = maps.levels[level].w;
    if (maps.n * maps.c * h * w == 0) continue;
    // Bands of a size well inside L2.
    const int64_t affordable = kBandBytes / (kWindowChannels * w * static_cast<int64_t>(sizeof(T)));
    const int64_t rows = std::clamp<int64_t>(affordable, 1, h), bands = ceil_div(h, rows);
    Scratch<T> windows(rows * w * kWindowChannels), owns(own_size);
    torch::stable::parallel_for(0, maps.n * blocks * bands, 1, [&](int64_t begin, int64_t end) {
      T *window = windows.take(), *own = owns.take();
      for (int64_t item = begin; item < end; ++item) {
        const int64_t c = item / bands % blocks * kWindowChannels, channels = std::min(kWindowChannels, maps.c - c);
        const int64_t map = static_cast<int64_t>(level) * maps.n + item / (blocks * bands);
        const int64_t first = item % bands * rows, last = std::min(first + rows, h), pixels = (last - first) * w;
        std::fill_n(window, pixels * kWindowChannels, T(0));
        for (int64_t i = groups.first[map]; i < groups.first[map + 1]; ++i) {
          const int64_t k = groups.order[i];
          const AxisTaps<T> y = tables.y(k);
          if (y.low < last && y.high > first) add(k, c, channels, first, last, window, own);
        }
        const T* sums = window;
        if (channels_last) {
          S* to = maps.plane(map, 0) + first * w * maps.c + c;
          CVOPS_CALL_ISA(copy_window<true>, sums, channels, pixels, to, maps.c);
        } else {
          CVOPS_CALL_ISA(unpack_window<true>, sums, channels, pixels, maps.plane(map, c) + first * w, h * w);
        }
      }
    });
  }
}

}  // namespace
}  // namespace cvops
