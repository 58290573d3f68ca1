#include "unit/io/allocation_counter.h"

#include <cstdlib>
#include <new>

namespace {

thread_local size_t num_allocated_bytes = 0;

}  // namespace

namespace tessera::testing {

size_t allocated_bytes() { return num_allocated_bytes; }

}  // namespace tessera::testing

// The array forms and the sized forms of the standard library end in these; under sanitizers the form that does not
// throw does not, and std::stable_sort takes its buffer by it.
void* operator new(size_t size) {
  num_allocated_bytes += size;
  void* const memory = std::malloc(size > 0 ? size : 1);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
void* operator new(size_t size, const std::nothrow_t&) noexcept {
  num_allocated_bytes += size;
  return std::malloc(size > 0 ? size : 1);
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }
