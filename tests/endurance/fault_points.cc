#include "endurance/fault_points.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <link.h>
#include <pthread.h>
#include <spawn.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>
#include <unwind.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstdarg>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <new>

extern "C" char __executable_start, etext, __start_fault_points, __stop_fault_points;

// What stands between a call and who makes it: in a section of its own, so that its frames can be told from others.
#define TESSERA_FAULT_CODE __attribute__((section("fault_points"), noinline))

namespace tessera::testing::faults {

namespace {

constexpr int kFrames = 24;       // looked at
constexpr int kDepth = 2;         // frames of this program that make a site
constexpr size_t kTable = 16384;  // sites, a power of two; no memory of the heap
constexpr size_t kNameBytes = 16;

struct Slot {
  std::atomic<uint64_t> hash{0};
  std::atomic<int64_t> num_calls{0};
  Kind kind{};
  std::array<char, kNameBytes> call{};
};

/// In memory that child processes share, so that a fault is armed in all of them and what they saw outlives them.
struct Shared {
  std::array<Slot, kTable> slots;
  std::atomic<bool> is_watching{false};
  std::atomic<bool> has_failed{false};
  std::atomic<uint64_t> to_fail{0};
  std::atomic<int64_t> calls_to_pass{0};
  std::atomic<uint64_t> fails_before{0};
};
Shared* shared = nullptr;  // before it is there nothing is watched
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

bool lies_in(uintptr_t address, const char& first, const char& end) {
  return address >= reinterpret_cast<uintptr_t>(&first) && address < reinterpret_cast<uintptr_t>(&end);
}

/// The frames above a call, from the inside: its hash is whole once kDepth frames of this program have come.
struct Walk {
  uint64_t hash = 1469598103934665603ull;
  int num_frames = 0;
  int depth = 0;
  bool is_foreign = false;

  void mix(uint64_t value) { hash = (hash ^ value) * 1099511628211ull; }
  bool ends_with(uintptr_t address) {
    if (++num_frames > kFrames) return true;
    if (lies_in(address, __start_fault_points, __stop_fault_points)) return false;
    if (lies_in(address, __executable_start, etext)) {
      mix(address - reinterpret_cast<uintptr_t>(&__executable_start));
      return ++depth == kDepth;
    }
    for (int library = 0; depth == 0 && library < num_foreign; ++library) {
      const Range& range = foreign[static_cast<size_t>(library)];
      is_foreign = is_foreign || (address >= range.begin && address < range.end);
    }
    return is_foreign;
  }
};

_Unwind_Reason_Code on_frame(_Unwind_Context* context, void* walk) {
  return static_cast<Walk*>(walk)->ends_with(_Unwind_GetIP(context)) ? _URC_END_OF_STACK : _URC_NO_REASON;
}

/// True where the call is to fail.
TESSERA_FAULT_CODE bool fails(Kind kind, const char* call) {
  if (shared == nullptr || !shared->is_watching || is_inside) return false;
  is_inside = true;
  Walk walk;
  for (const char* c = call; *c != 0; ++c) walk.mix(static_cast<unsigned char>(*c));
  _Unwind_Backtrace(on_frame, &walk);
  bool now = false;
  if (walk.depth > 0) {
    auto& slots = shared->slots;
    for (size_t i = walk.hash % kTable;; i = (i + 1) % kTable) {
      uint64_t empty = 0;
      if (slots[i].hash == walk.hash || slots[i].hash.compare_exchange_strong(empty, walk.hash) || empty == walk.hash) {
        if (slots[i].num_calls++ == 0) {
          slots[i].kind = kind;
          std::strncpy(slots[i].call.data(), call, kNameBytes - 1);
        }
        break;
      }
    }
    uint64_t wanted = walk.hash;
    now = shared->to_fail == walk.hash && shared->calls_to_pass-- <= 0 &&
          shared->to_fail.compare_exchange_strong(wanted, 0);
    if (now) shared->has_failed = true;
    wanted = walk.hash;
    now = now || (shared->fails_before == walk.hash && shared->fails_before.compare_exchange_strong(wanted, 0));
  }
  is_inside = false;
  return now;
}

void map(int file) {
  void* const memory = mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (memory == MAP_FAILED) std::abort();
  dl_iterate_phdr(note_library, nullptr);
  shared = static_cast<Shared*>(memory);
}

void start(uint64_t hash, int64_t calls_to_pass, uint64_t before) {
  for (Slot& slot : shared->slots) {
    if (slot.hash == 0) continue;
    slot.hash = 0;
    slot.num_calls = 0;
  }
  shared->has_failed = false;
  shared->calls_to_pass = calls_to_pass;
  shared->to_fail = hash;
  shared->fails_before = before;
  shared->is_watching = true;
}

template <class Function>
Function next(const char* name) {
  return reinterpret_cast<Function>(dlsym(RTLD_NEXT, name));
}

}  // namespace

void share(const char* path) {
  const int file = ::open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (file < 0 || ftruncate(file, sizeof(Shared)) != 0) std::abort();
  map(file);
  close(file);
}
void watch() { start(0, 0, 0); }
void fail_at(uint64_t hash, int64_t call, uint64_t before) { start(hash, call, before); }
void pause() { shared->is_watching = false; }
Seen stop() {
  shared->is_watching = false;
  Seen seen;
  seen.has_failed = shared->has_failed;
  for (const Slot& slot : shared->slots) {
    if (slot.hash != 0) seen.sites.push_back({slot.hash, slot.kind, slot.num_calls, slot.call.data()});
  }
  return seen;
}
int64_t live_blocks() { return num_live; }

/// For operator new; null where it is to fail.
TESSERA_FAULT_CODE void* allocate(size_t bytes, size_t alignment, const char* call) {
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

TESSERA_FAULT_CODE void* operator new(size_t bytes) {
  void* memory = faults::allocate(bytes, alignof(std::max_align_t), "new");
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
TESSERA_FAULT_CODE void* operator new[](size_t bytes) { return operator new(bytes); }
TESSERA_FAULT_CODE void* operator new(size_t bytes, const std::nothrow_t&) noexcept {
  return faults::allocate(bytes, alignof(std::max_align_t), "new");
}
TESSERA_FAULT_CODE void* operator new[](size_t bytes, const std::nothrow_t& tag) noexcept {
  return operator new(bytes, tag);
}
TESSERA_FAULT_CODE void* operator new(size_t bytes, std::align_val_t alignment) {
  void* memory = faults::allocate(bytes, static_cast<size_t>(alignment), "new");
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
TESSERA_FAULT_CODE void* operator new[](size_t bytes, std::align_val_t alignment) {
  return operator new(bytes, alignment);
}
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
  TESSERA_FAULT_CODE type name parameters {                                                \
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

TESSERA_FAULT_CODE int open(const char* name, int flags, ...) {
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
