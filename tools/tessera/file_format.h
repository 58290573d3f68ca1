// The format of a file by its option or, without one, by its extension, in capitals or not. An extension that promises
// a format which is not read or written is an Error: taken for text, each of its rows would be labelled as a sentence.
#pragma once

#include <string>

#include "io/records.h"
#include "io/results.h"

namespace tessera::cli {

/// ".csv" of "a/Reviews.CSV"; empty where there is none.
std::string lower_extension(const std::string& path);

/// ".csv" of "reviews.csv.gz": the extension of what is compressed.
std::string input_extension(const std::string& path);

/// Throws Error naming the option where the file's name promises a picture or table of another kind than `own`, ".svg"
/// say.
void require_own_extension(const std::string& option, const std::string& path, const std::string& own);

/// `option`: --format, or empty. Throws Error naming the option or the file.
io::InputFormat input_format(const std::string& path, const std::string& option);

/// `option`: --output-format, or empty. Throws Error naming the option or the file.
io::OutputFormat output_format(const std::string& path, const std::string& option);

}  // namespace tessera::cli
