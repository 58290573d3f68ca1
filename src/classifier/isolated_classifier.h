// Classifiers that work in a process of their own, one process a device: what ends it, be it an illegal address on a
// GPU, ends no run. This process needs no CUDA for it.
//
//   auto lanes = make_isolated_classifiers({.command = {"/proc/self/exe", "worker-process", ...}, .name = "cuda:0",
//                                           .shape = channel_shape(config, input), .num_lanes = 2});
//   Engine engine(model, std::move(lanes), options);      // see restartable.h
//
// A process that dies, or that does not answer within the lease's time and is ended for it, is started again; its batch
// does not wait for that. Before the next process gets a batch it labels one sentence of padding, whose bits must be
// those of the first process: a device that does not pass is given up (DeviceError), and so is one that dies
// kMaxDeathsInARow times without an answer between, or kMaxDeathsAtStart times in a row before it is ready.
//
// The processes die with this one, whatever ends it, and with the last of their classifiers.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "classifier/lease_channel.h"
#include "classifier/restartable.h"

namespace tessera::classifier {

/// Well above what it takes to find a record in the largest batch by halves.
inline constexpr int kMaxDeathsInARow = 64;
/// Whatever ends a process that is just being made is not of its making, once or twice.
inline constexpr int kMaxDeathsAtStart = 3;

struct IsolationOptions {
  std::vector<std::string> command;  ///< program and arguments of the worker, which calls serve_leases
  std::string name;                  ///< of the device, in messages
  ChannelShape shape;
  int32_t pad_id = 0;  ///< what the sentence of the test is made of, where the input is ids
  int num_lanes = 1;
  std::chrono::milliseconds lease_timeout{300'000};
  std::chrono::milliseconds start_timeout{600'000};
};

/// One classifier a lane, all of one process. Throws Error where it cannot be started, with what it said.
std::vector<std::unique_ptr<RestartableClassifier>> make_isolated_classifiers(const IsolationOptions& options);

}  // namespace tessera::classifier
