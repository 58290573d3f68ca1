#include "classifier/lease_worker.h"

#include <signal.h>
#include <sys/prctl.h>

#include <atomic>
#include <new>
#include <optional>
#include <thread>

#include "tessera/core/check.h"
#include "tessera/core/error.h"

namespace tessera::classifier {

namespace {

using Channels = std::vector<std::unique_ptr<LeaseChannel>>;

Channels open_channels(int num_lanes) {
  Channels channels;
  for (int lane = 0; lane < num_lanes; ++lane) {
    const int first = kFirstLeaseDescriptor + 2 * lane;
    channels.push_back(std::make_unique<LeaseChannel>(Descriptor(first), Descriptor(first + 1)));
  }
  return channels;
}

/// False when the device is lost.
bool serve_one(LeaseChannel& channel, Classifier& classifier, const LeaseChannel::Lease& lease) {
  try {
    classifier.run(lease.batch, lease.outputs);
    channel.answer(Outcome::ok, "");
  } catch (const DeviceError& error) {
    channel.answer(Outcome::device_lost, error.what());
    return false;
  } catch (const std::bad_alloc&) {
    channel.answer(Outcome::out_of_memory, "");
  } catch (const std::exception& error) {
    channel.answer(Outcome::error, error.what());
  }
  return true;
}

}  // namespace

void become_worker_process() {
  // Where the supervisor ended before this call, its end of the socket is closed, and `take_lease` sees that.
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  for (const int number : {SIGINT, SIGTERM}) signal(number, SIG_IGN);
  signal(SIGPIPE, SIG_IGN);
}

bool serve_leases(int num_lanes, const ClassifierMaker& make) {
  TESSERA_CHECK(num_lanes >= 1 && num_lanes <= kMaxLanes, num_lanes);
  const Channels channels = open_channels(num_lanes);
  std::vector<std::unique_ptr<Classifier>> classifiers;
  const auto refuse = [&](Outcome outcome, const std::string& problem) {
    for (const auto& channel : channels) channel->introduce(1, problem, outcome);
    return false;
  };
  try {
    classifiers = make(channels[0]->shape());
    TESSERA_CHECK(classifiers.size() == channels.size(), classifiers.size(), channels.size());
  } catch (const DeviceError& error) {
    return refuse(Outcome::device_lost, error.what());
  } catch (const std::bad_alloc&) {
    return refuse(Outcome::error, "memory: too little for the model");
  } catch (const std::exception& error) {
    return refuse(Outcome::error, error.what());
  }
  std::atomic<bool> is_lost{false};
  const auto serve = [&](size_t lane) {
    LeaseChannel& channel = *channels[lane];
    channel.introduce(classifiers[lane]->preferred_batch(), classifiers[lane]->description(), Outcome::ok);
    while (const std::optional<LeaseChannel::Lease> lease = channel.take_lease()) {
      if (serve_one(channel, *classifiers[lane], *lease)) continue;
      is_lost = true;
      for (const auto& each : channels) each->shut_down();
    }
  };
  std::vector<std::jthread> threads;
  try {
    for (size_t lane = 1; lane < channels.size(); ++lane) threads.emplace_back(serve, lane);
  } catch (const std::exception& error) {
    // The supervisor reads this lane first; the others that serve already wait for leases, which end with their
    // sockets.
    channels[0]->introduce(1, str_cat("cannot start a thread for each of ", num_lanes, " lanes: ", error.what()),
                           Outcome::error);
    for (size_t lane = 1; lane < channels.size(); ++lane) channels[lane]->shut_down();
    return false;
  }
  serve(0);
  threads.clear();
  return !is_lost;
}

}  // namespace tessera::classifier
