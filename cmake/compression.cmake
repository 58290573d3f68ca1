# The libraries with which the command reads compressed input: zlib, zstd, xz.
find_package(ZLIB REQUIRED)
find_package(LibLZMA REQUIRED)
find_path(TESSERA_ZSTD_INCLUDE_DIR zstd.h REQUIRED DOC "libzstd-dev")
find_library(TESSERA_ZSTD_LIBRARY zstd REQUIRED DOC "libzstd-dev")
add_library(tessera_compression INTERFACE)
target_include_directories(tessera_compression SYSTEM INTERFACE ${TESSERA_ZSTD_INCLUDE_DIR})
target_link_libraries(tessera_compression INTERFACE ZLIB::ZLIB LibLZMA::LibLZMA ${TESSERA_ZSTD_LIBRARY})
