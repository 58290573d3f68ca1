// A classifier whose work happens in a process of its own, which may die and is then started again.
//
// The engine gives a batch whose process died to whoever is free, once more; if it dies again, halves of the batch run
// alone until the record that ends the process is found: that one fails, the others are labelled.
#pragma once

#include <stdexcept>

#include "tessera/classifier/classifier.h"

namespace tessera::classifier {

/// The process of a classifier died; another one takes its place when it is next needed. Nothing of the batch is known.
/// what() says which process, and of what.
class WorkerLost : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// `run` throws WorkerLost where the process died, DeviceError where another could not be started.
class RestartableClassifier : public Classifier {
 public:
  /// As `run`, while nothing else is under way in the process: if it dies, it is of this batch.
  virtual void run_alone(const Batch& batch, const Outputs& outputs) = 0;
  /// Waits for a process that is ready, as after WorkerLost; DeviceError where there will be none. A batch that waited
  /// for this could be with another device.
  virtual void recover() = 0;
};

}  // namespace tessera::classifier
