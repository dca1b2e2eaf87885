// Runs grids on the CPU: blocks one after another, the threads of a block as fibers that hand over at barriers and warp
// operations. A thread that never waits costs a function call: one fiber runs thread after thread until one must wait.
// Also here: shared memory, the counters that tests and reports read, and the redirected torch and CUDA calls.
#include "cuda_on_host.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/c/shim.h>

#include <cstdlib>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <stdexcept>
#include <vector>

#include "cuda_runtime.h"
#include "fiber.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace cuda_on_host {
namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStackBytes = 512 << 10;
#else
constexpr size_t kStackBytes = 128 << 10;
#endif
constexpr size_t kStaticSharedLimit = 48 << 10;
constexpr size_t kSharedLimit = 227 << 10;  // of compute capability 9.0, the largest that a launch can ask for
constexpr int kPoison = 0xff;               // NaN in every float type, -1 in every integer type
constexpr int kIdleLimit = 1000;            // rounds in which nobody did anything but wait

enum class Order { forward, reverse, shuffled };

Order order_named(const std::string& name) {
  if (name == "forward") return Order::forward;
  if (name == "reverse") return Order::reverse;
  if (name == "shuffled") return Order::shuffled;
  throw std::runtime_error("CVOPS_HOST_ORDER must be forward, reverse or shuffled, got " + name);
}

struct Counters {
  int64_t syncs = 0, memsets = 0;
  std::map<std::string, int64_t> launches, dispatches;
  std::string json;
};

struct Worker {
  Context context;
  int thread = -1;
};

enum class State { fresh, ready, at_barrier, at_warp_op, idle, exited };

struct Thread {
  State state = State::fresh;
  Worker* worker = nullptr;
  uint3 index{};
  Where where;
  Vote vote = Vote::none;
  WarpOp op = WarpOp::sync;
  unsigned mask = 0;
  int argument = 0, width = 0;
  uint64_t value = 0, result = 0;
};

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

struct SharedArray {
  const void* declaration;
  std::unique_ptr<void, Free> memory;
};

bool same_place(const Where& a, const Where& b) {
  return a.line() == b.line() && a.column() == b.column() && std::strcmp(a.file_name(), b.file_name()) == 0;
}

std::string place(const Where& where) {
  const std::string file = where.file_name();
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(where.line());
}

class Scheduler {
 public:
  Scheduler() {
    const char* order = std::getenv("CVOPS_HOST_ORDER");
    if (order != nullptr) order_ = order_named(order);
  }

  std::mutex mutex;
  Counters counters;

  void set_order(Order order) { order_ = order; }

  void run(const char* name, dim3 grid, dim3 block, size_t shared_bytes, Kernel kernel) {
    name_ = name;
    if (!name_.empty() && name_.front() == '(') name_ = name_.substr(1, name_.size() - 2);
    check_limits(grid, block, shared_bytes);
    if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
    ++counters.launches[name_];
    kernel_ = kernel;
    dynamic_bytes_ = shared_bytes;
    gridDim = grid;
    blockDim = block;
    random_.seed(++launch_number_);
    const int64_t blocks = static_cast<int64_t>(grid.x) * grid.y * grid.z;
    // A stride prime to the number of blocks visits each of them once.
    int64_t stride = 1, first = 0;
    if (order_ == Order::reverse) stride = -1, first = blocks - 1;
    if (order_ == Order::shuffled) {
      first = static_cast<int64_t>(random_() % static_cast<uint64_t>(blocks));
      do stride = 1 + static_cast<int64_t>(random_() % static_cast<uint64_t>(blocks));
      while (std::gcd(stride, blocks) != 1);
    }
    for (int64_t i = 0; i < blocks; ++i) {
      const int64_t b = (first + (i * stride) % blocks + blocks) % blocks;
      blockIdx = {static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
          static_cast<unsigned>(b / grid.x / grid.y)};
      run_block();
    }
  }

  int barrier(Vote vote, int value, const Where& where) {
    Thread& me = current();
    me.vote = vote;
    me.value = static_cast<uint64_t>(static_cast<int64_t>(value));
    wait(me, State::at_barrier, where);
    return static_cast<int>(me.result);
  }

  uint64_t collective(WarpOp op, unsigned mask, uint64_t value, int argument, int width, const Where& where) {
    Thread& me = current();
    const int first = running_ / warpSize * warpSize, lane = running_ - first;
    const int lanes = std::min(warpSize, static_cast<int>(threads_.size()) - first);
    if ((mask >> lane & 1) == 0) fail("a warp operation at " + place(where) + " has a mask without the calling lane");
    if (lanes < warpSize && mask >> lanes != 0) {
      fail("a warp operation at " + place(where) + " has a mask with lanes that the block does not have");
    }
    me.op = op;
    me.mask = mask;
    me.value = value;
    me.argument = argument;
    me.width = width;
    me.state = State::at_warp_op;
    me.where = where;
    bool complete = true;
    for (int i = 0; i < lanes && complete; ++i) {
      const Thread& other = threads_[first + i];
      complete = (mask >> i & 1) == 0 || (other.state == State::at_warp_op && other.op == op && other.mask == mask &&
                                             same_place(other.where, where));
    }
    if (complete) {
      for (int i = 0; i < lanes; ++i) {
        if (mask >> i & 1) resolve(&threads_[first], i);
      }
    }
    wait(me, me.state, where);
    return me.result;
  }

  void idle(const Where& where) { wait(current(), State::idle, where); }

  void* shared(const void* declaration, const char* name, size_t bytes, size_t alignment) {
    for (const SharedArray& array : shared_) {
      if (array.declaration == declaration) return array.memory.get();
    }
    static_bytes_ += (bytes + 15) / 16 * 16;
    if (static_bytes_ > kStaticSharedLimit) fail(std::string(name) + " brings static shared memory over 48 KiB");
    shared_.push_back({declaration, allocate(bytes, alignment)});
    return shared_.back().memory.get();
  }

  void* dynamic() const { return dynamic_.get(); }

  // The body of every worker fiber.
  [[noreturn]] void work() {
    Worker& me = *starting_;
    for (;;) {
      while (next_fresh_ < order_of_threads_.size() && error_ == nullptr) {
        const int thread = order_of_threads_[next_fresh_++];
        me.thread = thread;
        threads_[thread].worker = &me;
        enter(thread);
        try {
          kernel_.run(kernel_.arguments);
        } catch (...) {
          error_ = std::current_exception();
        }
        threads_[running_].state = State::exited;
        ++exited_;
      }
      me.thread = -1;
      free_.push_back(&me);
      Context::swap(me.context, main_);
    }
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw std::runtime_error(name_ + ", block (" + std::to_string(blockIdx.x) + ", " + std::to_string(blockIdx.y) +
                             ", " + std::to_string(blockIdx.z) + "), thread " + std::to_string(running_) + ": " + what);
  }

  void check_limits(dim3 grid, dim3 block, size_t shared_bytes) const {
    const uint64_t threads = static_cast<uint64_t>(block.x) * block.y * block.z;
    if (threads == 0 || threads > 1024 || block.z > 64 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535 ||
        shared_bytes > kSharedLimit) {
      throw std::runtime_error(name_ + ": no device takes this launch: grid " + std::to_string(grid.x) + " x " +
                               std::to_string(grid.y) + " x " + std::to_string(grid.z) + ", block " +
                               std::to_string(block.x) + " x " + std::to_string(block.y) + " x " +
                               std::to_string(block.z) + ", " + std::to_string(shared_bytes) + " shared bytes");
    }
  }

  static std::unique_ptr<void, Free> allocate(size_t bytes, size_t alignment) {
    void* memory = nullptr;
    if (posix_memalign(&memory, std::max<size_t>(alignment, 16), bytes) != 0) throw std::bad_alloc();
    std::memset(memory, kPoison, bytes);
    return std::unique_ptr<void, Free>(memory);
  }

  Thread& current() { return threads_[running_]; }

  void enter(int thread) {
    running_ = thread;
    threadIdx = threads_[thread].index;
  }

  void wait(Thread& me, State state, const Where& where) {
    me.state = state;
    me.where = where;
    Context::swap(me.worker->context, main_);
  }

  // What lane i of a complete warp operation gets.
  void resolve(Thread* warp, int i) {
    Thread& me = warp[i];
    const int segment = i / me.width * me.width, end = segment + me.width;
    int source = i;
    switch (me.op) {
      case WarpOp::sync:
        break;
      case WarpOp::ballot:
      case WarpOp::match:
        me.result = 0;
        for (int j = 0; j < warpSize; ++j) {
          if ((me.mask >> j & 1) == 0) continue;
          const bool bit = me.op == WarpOp::ballot ? warp[j].value != 0 : warp[j].value == me.value;
          me.result |= static_cast<uint64_t>(bit) << j;
        }
        break;
      case WarpOp::index:
        source = segment + (me.argument & (me.width - 1));
        break;
      case WarpOp::up:
        source = i - me.argument < segment ? i : i - me.argument;
        break;
      case WarpOp::down:
        source = i + me.argument >= end ? i : i + me.argument;
        break;
      case WarpOp::exchange:
        source = (i ^ me.argument) >= end ? i : i ^ me.argument;
        break;
    }
    if (me.op != WarpOp::sync && me.op != WarpOp::ballot && me.op != WarpOp::match) {
      if ((me.mask >> source & 1) == 0) {
        fail("the shuffle at " + place(me.where) + " reads lane " + std::to_string(source) + ", not in its mask");
      }
      me.result = warp[source].value;
    }
    me.state = State::ready;
  }

  void shuffle_threads() {
    const size_t count = threads_.size();
    order_of_threads_.resize(count);
    std::iota(order_of_threads_.begin(), order_of_threads_.end(), 0);
    if (order_ == Order::reverse) std::reverse(order_of_threads_.begin(), order_of_threads_.end());
    if (order_ == Order::shuffled) std::shuffle(order_of_threads_.begin(), order_of_threads_.end(), random_);
  }

  void run_block() {
    threads_.assign(static_cast<size_t>(blockDim.x) * blockDim.y * blockDim.z, Thread{});
    for (size_t t = 0; t < threads_.size(); ++t) {
      threads_[t].index = {static_cast<unsigned>(t % blockDim.x), static_cast<unsigned>(t / blockDim.x % blockDim.y),
          static_cast<unsigned>(t / blockDim.x / blockDim.y)};
    }
    shared_.clear();
    static_bytes_ = 0;
    dynamic_ = dynamic_bytes_ != 0 ? allocate(dynamic_bytes_, 16) : nullptr;
    exited_ = 0;
    error_ = nullptr;
    shuffle_threads();

    for (next_fresh_ = 0; next_fresh_ < order_of_threads_.size() && error_ == nullptr;) resume(worker());
    int idle_rounds = 0;
    while (exited_ < threads_.size() && error_ == nullptr) {
      release_barrier();
      if (order_ == Order::shuffled) std::shuffle(order_of_threads_.begin(), order_of_threads_.end(), random_);
      bool progress = false, idled = false;
      for (size_t i = 0; i < order_of_threads_.size() && error_ == nullptr; ++i) {
        const int thread = order_of_threads_[i];
        const State state = threads_[thread].state;
        if (state != State::ready && state != State::idle) continue;
        enter(thread);
        resume(*threads_[thread].worker);
        progress |= state == State::ready || threads_[thread].state != State::idle;
        idled = true;
      }
      idle_rounds = progress ? 0 : idle_rounds + 1;
      if (!idled || idle_rounds > kIdleLimit) give_up();
    }
    if (error_ != nullptr) {
      abandon();
      std::rethrow_exception(error_);
    }
  }

  Worker& worker() {
    if (free_.empty()) {
      workers_.push_back(std::make_unique<Worker>());
      workers_.back()->context.make(kStackBytes, &Scheduler::entry);
      free_.push_back(workers_.back().get());
    }
    Worker* taken = free_.back();
    free_.pop_back();
    return *taken;
  }

  void resume(Worker& worker) {
    starting_ = &worker;
    Context::swap(main_, worker.context);
  }

  static void entry();

  // Lets everyone go once all threads of the block wait at one and the same barrier.
  void release_barrier() {
    int64_t any = 0, all = 1, count = 0;
    for (const Thread& thread : threads_) {
      if (thread.state != State::at_barrier || !same_place(thread.where, threads_[0].where)) return;
      any |= thread.value != 0;
      all &= thread.value != 0;
      count += thread.value != 0;
    }
    for (Thread& thread : threads_) {
      thread.result = static_cast<uint64_t>(thread.vote == Vote::any ? any : thread.vote == Vote::all ? all : count);
      thread.state = State::ready;
    }
  }

  // Nobody can go on: says who waits where.
  void give_up() {
    std::map<std::string, std::pair<int, int>> groups;  // what they do: first thread, how many
    for (size_t t = 0; t < threads_.size(); ++t) {
      const Thread& thread = threads_[t];
      const std::string doing = thread.state == State::exited       ? "returned"
                                : thread.state == State::at_barrier ? "waits in __syncthreads at " + place(thread.where)
                                : thread.state == State::idle ? "waits for another block at " + place(thread.where)
                                                              : "waits in a warp operation at " + place(thread.where);
      auto [group, fresh] = groups.try_emplace(doing, static_cast<int>(t), 0);
      ++group->second.second;
    }
    std::string text = "divergent barrier:";
    for (const auto& [doing, who] : groups) {
      text += " thread " + std::to_string(who.first);
      if (who.second > 1) text += " and " + std::to_string(who.second - 1) + " more";
      text += " " + doing + ";";
    }
    text.pop_back();
    running_ = 0;
    try {
      fail(text);
    } catch (...) {
      error_ = std::current_exception();
    }
  }

  void abandon() {
    for (Thread& thread : threads_) {
      const bool waiting = thread.worker != nullptr && thread.state != State::exited;
      if (!waiting) continue;
      thread.worker->thread = -1;
      thread.worker->context.restart(&Scheduler::entry);
      free_.push_back(thread.worker);
    }
  }

  Order order_ = Order::forward;
  uint64_t launch_number_ = 0;
  std::mt19937_64 random_;

  std::string name_;
  Kernel kernel_{};
  size_t dynamic_bytes_ = 0, static_bytes_ = 0;

  Context main_;
  std::vector<std::unique_ptr<Worker>> workers_;
  std::vector<Worker*> free_;
  Worker* starting_ = nullptr;

  std::vector<Thread> threads_;
  std::vector<int> order_of_threads_;
  size_t next_fresh_ = 0, exited_ = 0;
  int running_ = 0;
  std::exception_ptr error_;
  std::vector<SharedArray> shared_;
  std::unique_ptr<void, Free> dynamic_;
};

// Never destroyed: fibers and counters may be used until the process ends.
Scheduler& scheduler() {
  static Scheduler* const instance = new Scheduler;
  return *instance;
}

void Scheduler::entry() {
  Context::entered();
  scheduler().work();
}

std::string json_of(const std::map<std::string, int64_t>& counts) {
  std::string text = "{";
  for (const auto& [name, count] : counts) {
    text += (text.size() > 1 ? ", \"" : "\"") + name + "\": " + std::to_string(count);
  }
  return text + "}";
}

}  // namespace

int block_barrier(Vote vote, int value, Where where) {
  return scheduler().barrier(vote, value, where);
}

uint64_t warp_collective(WarpOp op, unsigned mask, uint64_t value, int argument, int width, Where where) {
  return scheduler().collective(op, mask, value, argument, width, where);
}

void idle(Where where) {
  scheduler().idle(where);
}

void* shared_array(const void* declaration, const char* name, size_t bytes, size_t alignment) {
  return scheduler().shared(declaration, name, bytes, alignment);
}

void* dynamic_shared() {
  return scheduler().dynamic();
}

void run_grid(const char* name, dim3 grid, dim3 block, size_t shared_bytes, Kernel kernel) {
  const std::lock_guard lock(scheduler().mutex);
  scheduler().run(name, grid, block, shared_bytes, kernel);
}

}  // namespace cuda_on_host

// --- CUDA runtime ---

cudaError_t cudaMemsetAsync(void* to, int byte, size_t bytes, cudaStream_t) {
  ++cuda_on_host::scheduler().counters.memsets;
  std::memset(to, byte, bytes);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t) {
  ++cuda_on_host::scheduler().counters.syncs;
  return cudaSuccess;
}

// --- Torch's C shim, and the interface for Python (shim.py) ---

#define EXPORT __attribute__((visibility("default")))

extern "C" {

AOTITorchError cuda_on_host_create_device_guard(int32_t, DeviceGuardHandle* guard) {
  *guard = nullptr;
  return 0;
}

AOTITorchError cuda_on_host_delete_device_guard(DeviceGuardHandle) {
  return 0;
}

AOTITorchError cuda_on_host_current_stream(int32_t, void** stream) {
  *stream = nullptr;
  return 0;
}

AOTITorchError cuda_on_host_call_dispatcher(
    const char* op, const char* overload, StableIValue* stack, uint64_t version) {
  ++cuda_on_host::scheduler().counters.dispatches[op];
  return torch_call_dispatcher(op, overload, stack, version);
}

EXPORT void cuda_on_host_reset() {
  cuda_on_host::scheduler().counters = {};
}

EXPORT const char* cuda_on_host_counts() {
  auto& c = cuda_on_host::scheduler().counters;
  c.json = "{\"launches\": " + cuda_on_host::json_of(c.launches) +
           ", \"dispatches\": " + cuda_on_host::json_of(c.dispatches) + ", \"syncs\": " + std::to_string(c.syncs) +
           ", \"memsets\": " + std::to_string(c.memsets) + "}";
  return c.json.c_str();
}

// 0, or 1 for a name that is not forward, reverse or shuffled.
EXPORT int cuda_on_host_set_order(const char* name) {
  try {
    cuda_on_host::scheduler().set_order(cuda_on_host::order_named(name));
    return 0;
  } catch (const std::exception&) {
    return 1;
  }
}

}  // extern "C"
