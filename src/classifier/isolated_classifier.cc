#include "classifier/isolated_classifier.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cmath>
#include <condition_variable>
#include <cstring>
#include <functional>
#include <mutex>
#include <new>
#include <shared_mutex>
#include <system_error>
#include <thread>
#include <utility>

#include "classifier/lease_worker.h"
#include "tessera/core/check.h"
#include "tessera/core/error.h"

extern char** environ;

namespace tessera::classifier {

namespace {

using Clock = LeaseChannel::Clock;

/// Runs what it is given on one thread that lives as long as it: the kernel ends a worker with the *thread* that
/// started it.
class Starter {
 public:
  Starter() {
    try {
      thread_ = std::thread([this] { serve(); });
    } catch (const std::system_error& error) {
      throw Error("threads", str_cat("cannot start one: ", error.code().message(), " (a limit on processes)"));
    }
  }
  ~Starter() {
    {
      const std::lock_guard lock(mutex_);
      is_ending_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }
  Starter(const Starter&) = delete;
  Starter& operator=(const Starter&) = delete;

  /// Waits until it is done; one caller at a time.
  void run(const std::function<void()>& body) {
    std::unique_lock lock(mutex_);
    body_ = &body;
    changed_.notify_all();
    changed_.wait(lock, [&] { return body_ == nullptr; });
  }

 private:
  void serve() {
    std::unique_lock lock(mutex_);
    while (true) {
      changed_.wait(lock, [&] { return is_ending_ || body_ != nullptr; });
      if (is_ending_) return;
      (*body_)();
      body_ = nullptr;
      changed_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  const std::function<void()>* body_ = nullptr;  // guarded by mutex_
  bool is_ending_ = false;                       // guarded by mutex_
  std::thread thread_;
};

/// One worker process and its channels. Ended with this object.
class Process {
 public:
  Process(const IsolationOptions& options, Starter& starter) {
    for (int lane = 0; lane < options.num_lanes; ++lane) {
      channels_.push_back(std::make_unique<LeaseChannel>(options.shape));
    }
    int error_number = 0;
    starter.run([&] { error_number = start(options.command); });
    for (const auto& channel : channels_) channel->close_far_end();
    if (error_number != 0) {
      throw Error("worker process of " + options.name, "cannot start: " + errno_message(error_number));
    }
  }
  ~Process() {
    end();
    wait();
  }
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  LeaseChannel& channel(size_t lane) { return *channels_[lane]; }
  size_t num_lanes() const { return channels_.size(); }

  /// Ends it, if it has not ended; says of what it died: "ended by signal 11", "ended with exit code 1". Once dead, the
  /// answers that it gave before can still be read. What it left on its device (a kernel) may keep it for a while yet.
  std::string end() {
    const std::lock_guard lock(mutex_);
    if (pid_ <= 0 || !how_.empty()) return how_;
    const pid_t pid = pid_;
    int status = 0;
    const bool had_ended = waitpid(pid, &status, WNOHANG) == pid || has_ended_soon(pid, status);
    if (had_ended) {
      pid_ = 0;
    } else {
      kill(pid, SIGKILL);
    }
    how_ = str_cat("process ", pid, " ",
                   !had_ended                 ? std::string("had to be ended")
                   : WIFSIGNALED(status) != 0 ? str_cat("was ended by signal ", WTERMSIG(status))
                                              : str_cat("ended with exit code ", WEXITSTATUS(status)));
    return how_;
  }
  /// Until nothing is left of a process that `end` has ended.
  void wait() {
    pid_t pid = 0;
    {
      const std::lock_guard lock(mutex_);
      pid = std::exchange(pid_, 0);
    }
    while (pid > 0 && waitpid(pid, nullptr, 0) < 0 && errno == EINTR) {
    }
  }
  /// From here on `end` waits a little for the process to end by itself: its socket has ended.
  void expect_end() { is_ending_ = true; }

 private:
  bool has_ended_soon(pid_t pid, int& status) const {
    for (int i = 0; is_ending_ && i < 100; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      if (waitpid(pid, &status, WNOHANG) == pid) return true;
    }
    return false;
  }

  /// 0, or an errno value.
  int start(const std::vector<std::string>& command) {
    std::vector<char*> arguments;
    arguments.reserve(command.size() + 1);
    for (const std::string& argument : command) arguments.push_back(const_cast<char*>(argument.c_str()));
    arguments.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    posix_spawn_file_actions_init(&actions);
    posix_spawnattr_init(&attributes);
    posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&actions, STDERR_FILENO, STDOUT_FILENO);  // the results are the supervisor's
    for (size_t lane = 0; lane < channels_.size(); ++lane) {
      const int first = kFirstLeaseDescriptor + 2 * static_cast<int>(lane);
      posix_spawn_file_actions_adddup2(&actions, channels_[lane]->memory(), first);
      posix_spawn_file_actions_adddup2(&actions, channels_[lane]->far_end(), first + 1);
    }
    // A group of its own: Ctrl-C and Ctrl-Z of a terminal are for the supervisor.
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP);
    posix_spawnattr_setpgroup(&attributes, 0);
    const int error_number = posix_spawn(&pid_, arguments[0], &actions, &attributes, arguments.data(), environ);
    posix_spawnattr_destroy(&attributes);
    posix_spawn_file_actions_destroy(&actions);
    if (error_number != 0) pid_ = 0;
    return error_number;
  }

  std::vector<std::unique_ptr<LeaseChannel>> channels_;
  std::mutex mutex_;
  pid_t pid_ = 0;    // guarded by mutex_; 0: nothing is left of it
  std::string how_;  // guarded by mutex_; how it ended
  std::atomic<bool> is_ending_{false};
};

/// A sentence of padding and what the first process made of it.
struct SelfTest {
  std::vector<int32_t> ids;
  std::vector<float> embeddings;
  std::vector<float> logits;  // empty: not known yet

  explicit SelfTest(const IsolationOptions& options)
      : ids(static_cast<size_t>(options.shape.sequence_length), options.pad_id),
        embeddings(static_cast<size_t>(options.shape.embedding_size * options.shape.sequence_length), 0.0f) {}
  Batch batch() const { return {.num_sentences = 1, .ids = ids.data(), .embeddings = embeddings.data()}; }
};

/// A process ended before it was ready. what() says of what.
class DiedAtStart : public Error {
 public:
  using Error::Error;
};

/// A device: the process that has it now.
class Device {
 public:
  explicit Device(const IsolationOptions& options) : options_(options), self_test_(options) { process_ = start(); }

  const IsolationOptions& options() const { return options_; }
  const std::string& description() const { return description_; }
  int64_t preferred_batch() const { return preferred_batch_; }

  /// The one that works now; where it died, the next, once that is ready. Throws DeviceError where there is none.
  std::shared_ptr<Process> process() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return !is_starting_; });
    if (process_ == nullptr && lost_.empty()) start_again(lock);
    if (process_ == nullptr) throw DeviceError(lost_);
    return process_;
  }
  uint64_t next_lease_id() { return ++last_lease_id_; }
  void answered() { num_deaths_in_a_row_ = 0; }

  /// `dead` is, or has to be ended. Does not wait until it is gone: its batch is for another device meanwhile. Throws
  /// DeviceError where the device is given up, else WorkerLost.
  [[noreturn]] void condemn(const std::shared_ptr<Process>& dead, const std::string& said) {
    const std::string why =
        str_cat(options_.name, ": worker ", dead->end(), said.empty() ? "" : str_cat(" (", said, ")"));
    const std::lock_guard lock(mutex_);
    if (process_ == dead) {
      dead_ = std::exchange(process_, nullptr);
      last_death_ = why;
      if (++num_deaths_in_a_row_ > kMaxDeathsInARow) {
        lost_ = str_cat(why, ", the last of ", num_deaths_in_a_row_, " without an answer between");
      }
    }
    if (!lost_.empty()) throw DeviceError(lost_);
    throw WorkerLost(why);
  }

  /// Shared by those who do not mind each other, exclusive for one that runs alone.
  std::shared_mutex& company() { return company_; }

 private:
  /// Others may look at the device meanwhile, none starts another process.
  void start_again(std::unique_lock<std::mutex>& lock) {
    is_starting_ = true;
    const std::shared_ptr<Process> dead = std::exchange(dead_, nullptr);
    std::shared_ptr<Process> fresh;
    std::string why_not;
    lock.unlock();
    dead->wait();  // what it had of the device's memory is needed
    for (int num_deaths = 1; fresh == nullptr && why_not.empty(); ++num_deaths) {
      try {
        fresh = start();
      } catch (const DiedAtStart& died) {
        if (num_deaths == kMaxDeathsAtStart) why_not = died.what();
      } catch (const std::exception& error) {
        why_not = error.what();
      }
    }
    lock.lock();
    process_ = fresh;
    if (fresh == nullptr) lost_ = str_cat(last_death_, "; it cannot be started again: ", why_not);
    is_starting_ = false;
    changed_.notify_all();
  }

  /// A process that has introduced itself on every lane and passed the test.
  std::shared_ptr<Process> start() {
    auto process = std::make_shared<Process>(options_, starter_);
    const Clock::time_point deadline = Clock::now() + options_.start_timeout;
    const std::string where = "worker process of " + options_.name;
    for (size_t lane = 0; lane < process->num_lanes(); ++lane) {
      LeaseChannel& channel = process->channel(lane);
      require_answer(channel.wait_for_hello(deadline), *process, channel, where, " before it was ready");
      preferred_batch_ = channel.preferred_batch();
      if (description_.empty()) description_ = channel.text();
    }
    for (size_t lane = 0; lane < process->num_lanes(); ++lane) {
      process->channel(lane).reserve(preferred_batch_);
      test(*process, process->channel(lane), where);
    }
    return process;
  }

  /// Of a process that is being made: throws unless it has answered, and well.
  static void require_answer(LeaseChannel::Wait wait, Process& process, LeaseChannel& channel, const std::string& where,
                             const char* when) {
    if (wait == LeaseChannel::Wait::ended) process.expect_end();
    if (wait != LeaseChannel::Wait::answered) {
      const std::string how = process.end() + when;
      if (wait == LeaseChannel::Wait::ended) throw DiedAtStart(where, how);
      throw Error(where, how);
    }
    if (channel.outcome() != Outcome::ok) throw Error(where, channel.text());
  }

  void test(Process& process, LeaseChannel& channel, const std::string& where) {
    const uint64_t lease_id = next_lease_id();
    channel.put_lease(lease_id, self_test_.batch(), false);
    require_answer(channel.wait_for_answer(lease_id, Clock::now() + options_.lease_timeout), process, channel, where,
                   " when it was tested with a sentence of padding");
    std::vector<float> logits(static_cast<size_t>(options_.shape.num_classes));
    channel.copy_results({.logits = logits.data()});
    if (self_test_.logits.empty()) self_test_.logits = logits;
    if (std::memcmp(logits.data(), self_test_.logits.data(), logits.size() * sizeof(float)) != 0) {
      throw Error(where, "other logits of a sentence of padding", "those of the first process");
    }
  }

  const IsolationOptions options_;
  Starter starter_;
  std::shared_mutex company_;
  std::atomic<uint64_t> last_lease_id_{0};
  std::atomic<int> num_deaths_in_a_row_{0};
  std::atomic<int64_t> preferred_batch_{1};
  std::string description_;
  SelfTest self_test_;
  std::mutex mutex_;
  std::condition_variable changed_;   // of is_starting_
  bool is_starting_ = false;          // guarded by mutex_, as everything below
  std::shared_ptr<Process> process_;  // null: it died, or the device is given up
  std::shared_ptr<Process> dead_;     // the one before, until another is started
  std::string last_death_;
  std::string lost_;  // non-empty: why the device is given up
};

class IsolatedClassifier : public RestartableClassifier {
 public:
  IsolatedClassifier(std::shared_ptr<Device> device, size_t lane) : device_(std::move(device)), lane_(lane) {}

  void run(const Batch& batch, const Outputs& outputs) override {
    const std::shared_lock company(device_->company());
    run_slices(batch, outputs);
  }
  void run_alone(const Batch& batch, const Outputs& outputs) override {
    const std::unique_lock alone(device_->company());
    run_slices(batch, outputs);
  }
  void recover() override { static_cast<void>(device_->process()); }
  std::string description() const override { return device_->description() + "; in a process of its own"; }
  int64_t preferred_batch() const override { return device_->preferred_batch(); }

 private:
  void run_slices(const Batch& batch, const Outputs& outputs) {
    TESSERA_CHECK(outputs.features == nullptr, "no room for features in a lease");
    const ChannelShape& shape = device_->options().shape;
    const auto behind = [](auto* array, int64_t count) { return array == nullptr ? nullptr : array + count; };
    for (int64_t begin = 0; begin < batch.num_sentences;) {
      const int64_t count = std::min(batch.num_sentences - begin, preferred_batch());
      lease({.num_sentences = count,
             .ids = behind(batch.ids, begin * shape.sequence_length),
             .embeddings = behind(batch.embeddings, begin * shape.embedding_size * shape.sequence_length)},
            {.logits = behind(outputs.logits, begin * shape.num_classes),
             .router_weights = behind(outputs.router_weights, begin * shape.num_experts),
             .status = behind(outputs.status, begin)});
      begin += count;
    }
  }

  void lease(const Batch& batch, const Outputs& outputs) {
    const std::shared_ptr<Process> process = device_->process();
    LeaseChannel& channel = process->channel(lane_);
    const uint64_t lease_id = device_->next_lease_id();
    channel.put_lease(lease_id, batch, outputs.router_weights != nullptr);
    const auto timeout = device_->options().lease_timeout;
    const LeaseChannel::Wait wait = channel.wait_for_answer(lease_id, Clock::now() + timeout);
    if (wait == LeaseChannel::Wait::too_late) {
      device_->condemn(process, str_cat("no answer within ", timeout.count(), " ms"));
    }
    if (wait == LeaseChannel::Wait::ended) {
      process->expect_end();
      device_->condemn(process, "");
    }
    switch (channel.outcome()) {
      case Outcome::ok: break;
      case Outcome::out_of_memory: throw std::bad_alloc();
      case Outcome::device_lost: process->expect_end(); device_->condemn(process, channel.text());
      case Outcome::error: throw Error("worker process of " + device_->options().name, channel.text());
    }
    channel.copy_results(outputs);
    device_->answered();
  }

  std::shared_ptr<Device> device_;
  size_t lane_;
};

}  // namespace

std::vector<std::unique_ptr<RestartableClassifier>> make_isolated_classifiers(const IsolationOptions& options) {
  TESSERA_CHECK(!options.command.empty() && options.num_lanes >= 1 && options.num_lanes <= kMaxLanes,
                options.command.size(), options.num_lanes);
  const auto device = std::make_shared<Device>(options);
  std::vector<std::unique_ptr<RestartableClassifier>> lanes;
  lanes.reserve(static_cast<size_t>(options.num_lanes));
  for (int lane = 0; lane < options.num_lanes; ++lane) {
    lanes.push_back(std::make_unique<IsolatedClassifier>(device, static_cast<size_t>(lane)));
  }
  return lanes;
}

}  // namespace tessera::classifier
