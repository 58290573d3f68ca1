// Any bytes as a file of format csv (record_file.h).
#include "record_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  tessera::fuzz::check_records(data, size, tessera::io::InputFormat::csv);
  return 0;
}
