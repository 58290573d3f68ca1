// The oracle behind Precision::fp64.
#pragma once

#include <memory>

#include "tessera/classifier/classifier.h"

namespace tessera::classifier {

std::unique_ptr<Classifier> make_reference_classifier(std::shared_ptr<const Model> model, InputKind input,
                                                      int num_threads);

}  // namespace tessera::classifier
