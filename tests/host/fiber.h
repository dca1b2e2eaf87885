// Fibers: stacks of their own that hand over to each other inside one OS thread. What they run, and when, is the
// scheduler's matter (cuda_on_host.cpp).
#pragma once

#include <cstddef>

// Define CUDA_ON_HOST_UCONTEXT to try the portable switch on x86-64.
#if defined(__x86_64__) && !defined(CUDA_ON_HOST_UCONTEXT)
#define CUDA_ON_HOST_SWITCH 1
#else
#include <ucontext.h>
#endif

namespace cuda_on_host {

// A place where execution can be left and taken up again: the OS thread's own stack, or one made by make().
class Context {
 public:
  Context() = default;
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;
  ~Context();

  // Gives this context a stack on which entry() begins at the first switch to it. entry never returns.
  void make(size_t stack_bytes, void (*entry)());

  // To be called first thing in entry.
  static void entered();

  // Leaves `from`, where execution is now, and takes up `to`.
  static void swap(Context& from, Context& to);

  // Forgets what ran here; the stack stays and entry() begins again at the next switch.
  void restart(void (*entry)());

 private:
  char* mapping_ = nullptr;  // a guard page, then the stack
  char* stack_ = nullptr;
  size_t stack_bytes_ = 0;
  size_t mapped_bytes_ = 0;
  void* fake_stack_ = nullptr;  // AddressSanitizer's
#if defined(CUDA_ON_HOST_SWITCH)
  void* top_ = nullptr;
#else
  ucontext_t registers_;
#endif
};

}  // namespace cuda_on_host
