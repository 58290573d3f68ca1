// How much of an exhaustive test runs.
#pragma once

namespace tessera::testing {

/// Exhaustive counts are cut under sanitizers, which run them some ten times slower.
#if defined(__SANITIZE_ADDRESS__)
inline constexpr int kExhaustiveDivisor = 50;
#else
inline constexpr int kExhaustiveDivisor = 1;
#endif

}  // namespace tessera::testing
