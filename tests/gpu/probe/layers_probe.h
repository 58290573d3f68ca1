// Whole layers on the device against the host model, and what machines without a device compare with.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace tessera::testing {

/// Fuzzes `count` layers whose activation the host has, and a fifth as many with the others; prints and returns layers,
/// elements and how many differ, and how often the exact function, rounded, is another 16-bit number than the device's.
nlohmann::ordered_json probe_layers(int count);

/// Writes unit/moe/exact_record.h's file: what this device gives.
void record_layers(const std::string& path, const std::string& device_name);

}  // namespace tessera::testing
