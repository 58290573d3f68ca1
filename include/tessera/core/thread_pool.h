// A fixed team of threads that runs one indexed loop at a time.
//
//   ThreadPool pool(4);
//   pool.run(num_items, [&](int64_t item, int worker) { ... });
//
// Items are taken in order from one counter, so a slow item does not hold the others up. The calling thread is worker 0
// and takes part. `run` returns when every item is done; if an item throws, no further item starts and the first
// exception is thrown by `run`. One run at a time: the pool is owned by one caller.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace tessera {

/// Threads that a layer, a classifier or a command may be given: the processors of one affinity mask (CPU_SETSIZE), so
/// that more could only take turns.
inline constexpr int kMaxThreads = 1024;

/// Processors this process may use (the affinity mask, not the machine); at least 1.
int available_processors();

class ThreadPool {
 public:
  using Body = std::function<void(int64_t item, int worker)>;

  /// `num_threads` >= 1 counts the calling thread; 1 starts no thread at all. Where the system allows fewer threads (a
  /// limit on processes), the pool has fewer: num_threads() says how many.
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return static_cast<int>(threads_.size()) + 1; }
  void run(int64_t num_items, const Body& body);

 private:
  void join();
  void serve(int worker);
  void take_items(int worker);

  std::mutex mutex_;
  std::condition_variable work_ready_;
  std::condition_variable work_done_;
  uint64_t generation_ = 0;        // guarded by mutex_; counts runs, so that a worker joins each once
  int num_busy_ = 0;               // guarded by mutex_; workers still inside the current run
  bool stopping_ = false;          // guarded by mutex_
  const int32_t* stop_ = nullptr;  // guarded by mutex_; what ends the run's caller ends its workers
  const Body* body_ = nullptr;
  int64_t num_items_ = 0;
  std::atomic<int64_t> next_item_{0};
  std::exception_ptr first_error_;  // guarded by mutex_
  std::vector<std::thread> threads_;
};

}  // namespace tessera
