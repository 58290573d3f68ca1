// Calls of this program that can be made to fail: every allocation by new or aligned_alloc, every file call, every
// start of a thread. A program that links fault_points.cc makes them through it; calls that other libraries make for
// themselves are left alone.
//
//   faults::share("faults");            // in every process that takes part, first of all
//   faults::watch();                    // counts calls and their sites
//   run();
//   for (const faults::Site& site : faults::stop().sites) {
//     faults::fail_at(site.hash);       // the first call there, once
//     run();
//     faults::stop();
//   }
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace tessera::testing::faults {

enum class Kind : uint8_t { allocation, file, thread };
inline constexpr const char* kKindNames[] = {"allocation", "file", "thread"};

/// Where a call stands: itself and what called it inside this program, a few levels deep.
struct Site {
  uint64_t hash = 0;
  Kind kind = Kind::allocation;
  int64_t num_calls = 0;
  std::string call;  ///< "pread"
};

struct Seen {
  std::vector<Site> sites;
  bool has_failed = false;  ///< the fault was reached
};

/// This process and all others that name this file see the same faults and count together.
void share(const char* path);
void watch();
/// The call there of this number, from 0, fails; once. With `before`, the first call there fails too: what is called
/// only where something has failed.
void fail_at(uint64_t hash, int64_t call = 0, uint64_t before = 0);
/// No further call counts or fails.
void pause();
Seen stop();

/// Blocks that are allocated now.
int64_t live_blocks();

}  // namespace tessera::testing::faults
