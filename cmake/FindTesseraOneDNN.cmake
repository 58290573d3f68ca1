# tessera::onednn: oneDNN with OpenMP, for the build and, from the installed package, for whoever links the static
# libraries. Found by header and library; its own CMake package also asks for OpenCL headers, which nothing here uses.
find_path(TESSERA_ONEDNN_INCLUDE_DIR oneapi/dnnl/dnnl.hpp DOC "Headers of oneDNN (libdnnl-dev)")
find_library(TESSERA_ONEDNN_LIBRARY dnnl DOC "oneDNN (libdnnl-dev)")
mark_as_advanced(TESSERA_ONEDNN_INCLUDE_DIR TESSERA_ONEDNN_LIBRARY)
find_package(OpenMP QUIET COMPONENTS CXX)

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(TesseraOneDNN REQUIRED_VARS TESSERA_ONEDNN_LIBRARY TESSERA_ONEDNN_INCLUDE_DIR
                                  OpenMP_CXX_FOUND)
if(TesseraOneDNN_FOUND AND NOT TARGET tessera::onednn)
  add_library(tessera::onednn UNKNOWN IMPORTED)
  set_target_properties(tessera::onednn PROPERTIES IMPORTED_LOCATION "${TESSERA_ONEDNN_LIBRARY}"
                        INTERFACE_INCLUDE_DIRECTORIES "${TESSERA_ONEDNN_INCLUDE_DIR}"
                        INTERFACE_LINK_LIBRARIES OpenMP::OpenMP_CXX)
endif()
