#include "classify_blocks.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <exception>
#include <mutex>
#include <thread>

#include "tessera/core/check.h"

namespace tessera::cli {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kBlocks = 2;
constexpr double kLimitSeconds = 2.0;  // at most; a limit is steady sooner than a classifier
constexpr size_t kFewestRepeats = 3, kMostRepeats = 9;
constexpr double kRepeatSeconds = 2.0;

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

/// Threads of one block: they wait for each other, then for the start.
class Team {
 public:
  explicit Team(const std::vector<Worker>& workers) : workers_(workers), amounts_(workers.size()) {}

  Block run(double seconds) {
    std::vector<std::thread> threads;
    try {
      for (size_t i = 0; i < workers_.size(); ++i) threads.emplace_back([this, i, seconds] { serve(i, seconds); });
    } catch (...) {
      failed_ = started_ = true;  // those that run end at once
      for (std::thread& thread : threads) thread.join();
      throw;
    }
    while (num_ready_ < workers_.size()) std::this_thread::yield();
    begin_ = Clock::now();
    started_ = true;  // makes begin_ visible to the workers
    for (std::thread& thread : threads) thread.join();
    const double elapsed = seconds_since(begin_);
    if (error_) std::rethrow_exception(error_);
    Block block{0, elapsed};
    for (const double amount : amounts_) block.amount += amount;
    return block;
  }

 private:
  void serve(size_t i, double seconds) {
    ++num_ready_;
    while (!started_) std::this_thread::yield();
    try {
      for (int64_t n = 0; !failed_ && (n < workers_[i].fewest_steps || seconds_since(begin_) < seconds); ++n)
        amounts_[i] += workers_[i].step(n);
    } catch (...) {
      const std::lock_guard lock(mutex_);
      if (!error_) error_ = std::current_exception();
      failed_ = true;
    }
  }

  const std::vector<Worker>& workers_;
  std::vector<double> amounts_;  // one a worker
  std::atomic<size_t> num_ready_{0};
  std::atomic<bool> started_{false}, failed_{false};
  Clock::time_point begin_;
  std::mutex mutex_;
  std::exception_ptr error_;  // guarded by mutex_
};

}  // namespace

Block run_block(const std::vector<Worker>& workers, double seconds) {
  TESSERA_CHECK(!workers.empty(), workers.size());
  return Team(workers).run(seconds);
}

Spread repeated_seconds(const std::vector<Worker>& workers) {
  const auto once = [&] { return run_block(workers, 0.0).seconds; };
  once();
  std::vector<double> seconds;
  const auto begin = Clock::now();
  while (seconds.size() < kFewestRepeats || (seconds.size() < kMostRepeats && seconds_since(begin) < kRepeatSeconds))
    seconds.push_back(once());
  return spread_of(seconds);
}

Turns take_turns(const std::vector<Worker>& workers, const std::vector<Worker>& limit, double seconds,
                 const Watch& watch) {
  Turns turns;
  turns.num_blocks = kBlocks;
  std::vector<double> rates, limit_rates, ratios, lasted;
  for (int i = 0; i < kBlocks; ++i) {
    if (!limit.empty()) limit_rates.push_back(run_block(limit, std::min(seconds, kLimitSeconds)).rate());
    watch.begin();
    const Block block = run_block(workers, seconds);
    turns.states = watch.end();
    rates.push_back(block.rate());
    lasted.push_back(block.seconds);
    if (!limit.empty()) ratios.push_back(rates.back() / limit_rates.back());
  }
  turns.seconds_a_block = spread_of(lasted).median;
  turns.rate = spread_of(rates);
  if (!limit.empty()) {
    turns.limit_rate = spread_of(limit_rates);
    turns.ratio = spread_of(ratios);
  }
  return turns;
}

}  // namespace tessera::cli
