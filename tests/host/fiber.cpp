// Context switches: by hand on x86-64 (a few nanoseconds), by ucontext elsewhere (a system call each way), both
// announced to AddressSanitizer so that it knows whose stack is in use.
#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace cuda_on_host {
namespace {

Context* leaving = nullptr;  // the context that the last switch left
Context* arriving = nullptr;

}  // namespace

#if defined(CUDA_ON_HOST_SWITCH)
// Saves the callee-saved registers on the current stack, stores its top, and returns on the other stack.
extern "C" void cuda_on_host_switch(void** save_top, void* load_top);
__asm__(
    ".text\n"
    ".hidden cuda_on_host_switch\n"
    ".globl cuda_on_host_switch\n"
    ".type cuda_on_host_switch, @function\n"
    "cuda_on_host_switch:\n"
    "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
    "  movq %rsp, (%rdi)\n"
    "  movq %rsi, %rsp\n"
    "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n"
    "  ret\n"
    ".size cuda_on_host_switch, .-cuda_on_host_switch\n");
#endif

Context::~Context() {
  if (mapping_ != nullptr) munmap(mapping_, mapped_bytes_);
}

void Context::make(size_t stack_bytes, void (*entry)()) {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  stack_bytes_ = (stack_bytes + page - 1) / page * page;
  mapped_bytes_ = stack_bytes_ + page;
  void* mapping = mmap(nullptr, mapped_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping == MAP_FAILED) throw std::bad_alloc();
  mapping_ = static_cast<char*>(mapping);
  mprotect(mapping_, page, PROT_NONE);  // an overflow faults instead of reaching another stack
  stack_ = mapping_ + page;
  restart(entry);
}

void Context::restart(void (*entry)()) {
#if defined(__SANITIZE_ADDRESS__)
  // What ran here may have been abandoned half-way, with its redzones still marked.
  ASAN_UNPOISON_MEMORY_REGION(stack_, stack_bytes_);
#endif
  fake_stack_ = nullptr;
#if defined(CUDA_ON_HOST_SWITCH)
  // Six registers, then the address that the switch returns to; the call left rsp 8 short of a multiple of 16.
  auto** top = reinterpret_cast<void**>(stack_ + stack_bytes_) - 8;
  for (int i = 0; i < 8; ++i) top[i] = nullptr;
  top[6] = reinterpret_cast<void*>(entry);
  top_ = top;
#else
  getcontext(&registers_);
  registers_.uc_stack.ss_sp = stack_;
  registers_.uc_stack.ss_size = stack_bytes_;
  registers_.uc_link = nullptr;
  makecontext(&registers_, entry, 0);
#endif
}

void Context::entered() {
#if defined(__SANITIZE_ADDRESS__)
  // The stack that was left is the OS thread's at the first switch; only here does one learn where it lies.
  const void* bottom = nullptr;
  size_t bytes = 0;
  __sanitizer_finish_switch_fiber(arriving->fake_stack_, &bottom, &bytes);
  leaving->stack_ = static_cast<char*>(const_cast<void*>(bottom));
  leaving->stack_bytes_ = bytes;
#endif
}

void Context::swap(Context& from, Context& to) {
  leaving = &from;
  arriving = &to;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&from.fake_stack_, to.stack_, to.stack_bytes_);
#endif
#if defined(CUDA_ON_HOST_SWITCH)
  cuda_on_host_switch(&from.top_, to.top_);
#else
  swapcontext(&from.registers_, &to.registers_);
#endif
  entered();  // on `from` again, perhaps long after
}

}  // namespace cuda_on_host
