// The worker process: labels what its supervisor leases to it, until that is gone.
//
//   become_worker_process();                            // first of all
//   return serve_leases(num_lanes, [&](const ChannelShape& shape) { return make_classifiers(...); }) ? 0 : 1;
//
// It was started by isolated_classifier.h and inherited, for each lane, the memory and the socket of a LeaseChannel.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "classifier/lease_channel.h"
#include "tessera/classifier/classifier.h"

namespace tessera::classifier {

/// The descriptors of lane i: memory at kFirstLeaseDescriptor + 2 i, the socket one behind it.
inline constexpr int kFirstLeaseDescriptor = 3;
inline constexpr int kMaxLanes = 16;

/// The kernel ends this process as soon as the supervisor has ended, however that came; Ctrl-C and SIGTERM are the
/// supervisor's matter.
void become_worker_process();

using ClassifierMaker = std::function<std::vector<std::unique_ptr<Classifier>>(const ChannelShape& shape)>;

/// One thread a lane. `make` gives one classifier a lane, on this thread, or throws: the supervisor is told why. True
/// once the supervisor is gone, false when there were no classifiers or a device was lost, with which the process must
/// end.
bool serve_leases(int num_lanes, const ClassifierMaker& make);

}  // namespace tessera::classifier
