#include "endurance/fault_points.h"

#include <dlfcn.h>
#include <execinfo.h>
#include <fcntl.h>
#include <link.h>
#include <pthread.h>
#include <spawn.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstdarg>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <new>

extern "C" char __executable_start, etext;

namespace tessera::testing::faults {

namespace {

constexpr int kFrames = 24;      // looked at
constexpr int kDepth = 2;        // frames of this program that make a site
constexpr size_t kTable = 8192;  // sites, a power of two; no memory of the heap

struct Slot {
  std::atomic<uint64_t> hash{0};
  std::atomic<int64_t> num_calls{0};
  Kind kind{};
  const char* call = nullptr;
};

/// In memory that a child shares with its parent, so that what a child saw outlives it.
struct Shared {
  std::array<Slot, kTable> slots;
  std::atomic<bool> has_failed{false};
};
Shared& shared() {
  static auto* const memory =
      new (mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0)) Shared;
  return *memory;
}
std::atomic<bool> is_watching{false};
std::atomic<uint64_t> to_fail{0};
std::atomic<int64_t> calls_to_pass{0};
std::atomic<int64_t> num_live{0};
thread_local bool is_inside = false;

/// Code of libraries that are not this project's, whose own calls are left alone.
struct Range {
  uintptr_t begin, end;
};
std::array<Range, 16> foreign;
int num_foreign = 0;

int note_library(dl_phdr_info* info, size_t, void*) {
  const char* name = info->dlpi_name;
  const auto is = [&](const char* part) { return std::strstr(name, part) != nullptr; };
  if (!is("dnnl") && !is("gomp") && !is("OpenCL")) return 0;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const auto& header = info->dlpi_phdr[i];
    if (header.p_type != PT_LOAD || num_foreign == static_cast<int>(foreign.size())) continue;
    const uintptr_t begin = info->dlpi_addr + header.p_vaddr;
    foreign[static_cast<size_t>(num_foreign++)] = {begin, begin + header.p_memsz};
  }
  return 0;
}

/// 0: not a call of this program.
uint64_t site_of(const char* call) {
  void* frames[kFrames];
  const int count = backtrace(frames, kFrames);
  const auto first = reinterpret_cast<uintptr_t>(&__executable_start), last = reinterpret_cast<uintptr_t>(&etext);
  uint64_t hash = 1469598103934665603ull;
  const auto mix = [&](uint64_t value) { hash = (hash ^ value) * 1099511628211ull; };
  for (const char* c = call; *c != 0; ++c) mix(static_cast<unsigned char>(*c));
  int depth = 0;
  for (int i = 2; i < count && depth < kDepth; ++i) {  // behind this function and its caller
    const auto address = reinterpret_cast<uintptr_t>(frames[i]);
    if (address >= first && address < last) {
      mix(address - first);
      ++depth;
      continue;
    }
    for (int library = 0; depth == 0 && library < num_foreign; ++library) {
      const Range& range = foreign[static_cast<size_t>(library)];
      if (address >= range.begin && address < range.end) return 0;
    }
  }
  return depth == 0 ? 0 : hash;
}

/// True where the call is to fail. Not inlined, so that it is one frame.
[[gnu::noinline]] bool fails(Kind kind, const char* call) {
  if (!is_watching || is_inside) return false;
  is_inside = true;
  const uint64_t hash = site_of(call);
  bool now = false;
  if (hash != 0) {
    auto& slots = shared().slots;
    for (size_t i = hash % kTable;; i = (i + 1) % kTable) {
      uint64_t empty = 0;
      if (slots[i].hash == hash || slots[i].hash.compare_exchange_strong(empty, hash) || empty == hash) {
        if (slots[i].num_calls++ == 0) {
          slots[i].kind = kind;
          slots[i].call = call;
        }
        break;
      }
    }
    uint64_t wanted = hash;
    now = to_fail == hash && calls_to_pass-- <= 0 && to_fail.compare_exchange_strong(wanted, 0);
    if (now) shared().has_failed = true;
  }
  is_inside = false;
  return now;
}

void start(uint64_t hash) {
  if (num_foreign == 0) {
    void* frames[2];
    backtrace(frames, 2);  // its library is loaded by the first call
    dl_iterate_phdr(note_library, nullptr);
  }
  for (Slot& slot : shared().slots) {
    slot.hash = 0;
    slot.num_calls = 0;
  }
  shared().has_failed = false;
  to_fail = hash;
  is_watching = true;
}

template <class Function>
Function next(const char* name) {
  return reinterpret_cast<Function>(dlsym(RTLD_NEXT, name));
}

}  // namespace

void watch() { start(0); }
void fail_at(uint64_t hash, int64_t call) {
  calls_to_pass = call;
  start(hash);
}
void pause() { is_watching = false; }
Seen stop() {
  is_watching = false;
  Seen seen;
  seen.has_failed = shared().has_failed;
  for (const Slot& slot : shared().slots) {
    if (slot.hash != 0) seen.sites.push_back({slot.hash, slot.kind, slot.num_calls, slot.call});
  }
  return seen;
}
int64_t live_blocks() { return num_live; }

/// For operator new; null where it is to fail.
void* allocate(size_t bytes, size_t alignment, const char* call) {
  if (fails(Kind::allocation, call)) return nullptr;
  void* memory = nullptr;
  if (posix_memalign(&memory, std::max(alignment, sizeof(void*)), std::max<size_t>(bytes, 1)) != 0) return nullptr;
  ++num_live;
  return memory;
}
void give_back(void* memory) {
  if (memory == nullptr) return;
  --num_live;
  free(memory);
}

}  // namespace tessera::testing::faults

namespace faults = tessera::testing::faults;

void* operator new(size_t bytes) {
  void* memory = faults::allocate(bytes, alignof(std::max_align_t), "new");
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
void* operator new[](size_t bytes) { return operator new(bytes); }
void* operator new(size_t bytes, const std::nothrow_t&) noexcept {
  return faults::allocate(bytes, alignof(std::max_align_t), "new");
}
void* operator new[](size_t bytes, const std::nothrow_t& tag) noexcept { return operator new(bytes, tag); }
void* operator new(size_t bytes, std::align_val_t alignment) {
  void* memory = faults::allocate(bytes, static_cast<size_t>(alignment), "new");
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
void* operator new[](size_t bytes, std::align_val_t alignment) { return operator new(bytes, alignment); }
void operator delete(void* memory) noexcept { faults::give_back(memory); }
void operator delete[](void* memory) noexcept { faults::give_back(memory); }
void operator delete(void* memory, size_t) noexcept { faults::give_back(memory); }
void operator delete[](void* memory, size_t) noexcept { faults::give_back(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { faults::give_back(memory); }
void operator delete[](void* memory, std::align_val_t) noexcept { faults::give_back(memory); }
void operator delete(void* memory, size_t, std::align_val_t) noexcept { faults::give_back(memory); }
void operator delete[](void* memory, size_t, std::align_val_t) noexcept { faults::give_back(memory); }
void operator delete(void* memory, const std::nothrow_t&) noexcept { faults::give_back(memory); }
void operator delete[](void* memory, const std::nothrow_t&) noexcept { faults::give_back(memory); }

// Calls of the C library: failed with an errno value, or made as they are. Blocks of aligned_alloc go back by free,
// which counts nothing.
#define TESSERA_FAULT_POINT(kind, type, name, parameters, arguments, error_number, failed) \
  type name parameters {                                                                   \
    static const auto real = faults::next<type(*) parameters>(#name);                      \
    if (faults::fails(faults::Kind::kind, #name)) {                                        \
      errno = error_number;                                                                \
      return failed;                                                                       \
    }                                                                                      \
    return real arguments;                                                                 \
  }

extern "C" {
TESSERA_FAULT_POINT(allocation, void*, aligned_alloc, (size_t a, size_t n) noexcept, (a, n), ENOMEM, nullptr)
TESSERA_FAULT_POINT(file, ssize_t, read, (int d, void* p, size_t n), (d, p, n), EIO, -1)
TESSERA_FAULT_POINT(file, ssize_t, pread, (int d, void* p, size_t n, off_t at), (d, p, n, at), EIO, -1)
TESSERA_FAULT_POINT(file, ssize_t, write, (int d, const void* p, size_t n), (d, p, n), ENOSPC, -1)
TESSERA_FAULT_POINT(file, int, fsync, (int d), (d), EIO, -1)
TESSERA_FAULT_POINT(file, int, fdatasync, (int d), (d), EIO, -1)
TESSERA_FAULT_POINT(file, int, fstat, (int d, struct stat* s) noexcept, (d, s), EIO, -1)
TESSERA_FAULT_POINT(file, int, stat, (const char* n, struct stat* s) noexcept, (n, s), EIO, -1)
TESSERA_FAULT_POINT(file, off_t, lseek, (int d, off_t at, int w) noexcept, (d, at, w), EIO, -1)
TESSERA_FAULT_POINT(file, int, ftruncate, (int d, off_t n) noexcept, (d, n), ENOSPC, -1)
TESSERA_FAULT_POINT(file, int, rename, (const char* a, const char* b) noexcept, (a, b), EACCES, -1)
TESSERA_FAULT_POINT(file, int, unlink, (const char* a) noexcept, (a), EACCES, -1)
TESSERA_FAULT_POINT(file, int, fchmod, (int d, mode_t m) noexcept, (d, m), EPERM, -1)
TESSERA_FAULT_POINT(file, int, fchown, (int d, uid_t u, gid_t g) noexcept, (d, u, g), EPERM, -1)
TESSERA_FAULT_POINT(file, int, flock, (int d, int how) noexcept, (d, how), ENOLCK, -1)
TESSERA_FAULT_POINT(file, int, pipe2, (int d[2], int f) noexcept, (d, f), EMFILE, -1)
TESSERA_FAULT_POINT(file, int, memfd_create, (const char* n, unsigned f) noexcept, (n, f), EMFILE, -1)
TESSERA_FAULT_POINT(file, int, socketpair, (int d, int t, int p, int e[2]) noexcept, (d, t, p, e), EMFILE, -1)
TESSERA_FAULT_POINT(thread, int, pthread_create,
                    (pthread_t * t, const pthread_attr_t* a, void* (*f)(void*), void* x) noexcept, (t, a, f, x), EAGAIN,
                    EAGAIN)
TESSERA_FAULT_POINT(thread, int, posix_spawn,
                    (pid_t * p, const char* n, const posix_spawn_file_actions_t* f, const posix_spawnattr_t* a,
                     char* const* v, char* const* e) noexcept,
                    (p, n, f, a, v, e), EAGAIN, EAGAIN)

int open(const char* name, int flags, ...) {
  static const auto real = faults::next<int (*)(const char*, int, ...)>("open");
  if (faults::fails(faults::Kind::file, "open")) {
    errno = EMFILE;
    return -1;
  }
  va_list list;
  va_start(list, flags);
  const mode_t mode = (flags & O_CREAT) != 0 ? va_arg(list, mode_t) : 0;
  va_end(list);
  return real(name, flags, mode);
}
int __open_2(const char* name, int flags) { return open(name, flags); }
}
