// `tessera verify --report`: every precision of the chosen devices, its error against the fp64 oracle beside its speed.
#pragma once

#include <cstdint>
#include <string>

#include "verify_input.h"

namespace tessera::cli {

struct ReportOptions {
  ModelOptions model;       ///< a precision other than "default" is the only one that is reported
  VerifyInput input;        ///< no file: sentences that are made up, as token ids and as embeddings
  int64_t sample_size = 0;  ///< records that the oracle judges
  bool all_forms = false;   ///< on GPUs each form that can be had, not only --form
  std::string json;         ///< a file for the same as JSON, or empty
  bool quiet = false;       ///< no progress line
};

/// Prints the table; the exit code is kAllOk when every row without an expert threshold keeps its bound.
int print_verify_report(const ReportOptions& options);

}  // namespace tessera::cli
