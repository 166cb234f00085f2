# find_package(trafficllm 0.1) gives the targets trafficllm::trafficllm (shared library) and trafficllm::static.
#
# It can be moved with the files beside it: it stands in PREFIX/share/cmake/trafficllm and finds the rest from there.

get_filename_component(_trafficllm_prefix "${CMAKE_CURRENT_LIST_DIR}/../../.." ABSOLUTE)
set(_trafficllm_folders lib64 lib)
if(CMAKE_LIBRARY_ARCHITECTURE)
  list(INSERT _trafficllm_folders 0 "lib/${CMAKE_LIBRARY_ARCHITECTURE}")
endif()
list(TRANSFORM _trafficllm_folders PREPEND "${_trafficllm_prefix}/")

find_path(trafficllm_INCLUDE_DIR trafficllm.h PATHS "${_trafficllm_prefix}/include" NO_DEFAULT_PATH)
find_library(trafficllm_SHARED_LIBRARY NAMES libtrafficllm.so PATHS ${_trafficllm_folders} NO_DEFAULT_PATH)
find_library(trafficllm_STATIC_LIBRARY NAMES libtrafficllm.a PATHS ${_trafficllm_folders} NO_DEFAULT_PATH)
mark_as_advanced(trafficllm_INCLUDE_DIR trafficllm_SHARED_LIBRARY trafficllm_STATIC_LIBRARY)

if(trafficllm_SHARED_LIBRARY AND NOT TARGET trafficllm::trafficllm)
  add_library(trafficllm::trafficllm SHARED IMPORTED)
  set_target_properties(trafficllm::trafficllm PROPERTIES
    IMPORTED_LOCATION "${trafficllm_SHARED_LIBRARY}"
    INTERFACE_INCLUDE_DIRECTORIES "${trafficllm_INCLUDE_DIR}")
endif()
if(trafficllm_STATIC_LIBRARY AND NOT TARGET trafficllm::static)
  add_library(trafficllm::static STATIC IMPORTED)
  # What abi/native-static-libs.txt lists; the compiler adds the C library itself.
  set_target_properties(trafficllm::static PROPERTIES
    IMPORTED_LOCATION "${trafficllm_STATIC_LIBRARY}"
    INTERFACE_INCLUDE_DIRECTORIES "${trafficllm_INCLUDE_DIR}"
    INTERFACE_LINK_LIBRARIES "gcc_s;util;rt;pthread;m;dl")
endif()

set(trafficllm_FOUND TRUE)
if(NOT trafficllm_INCLUDE_DIR OR NOT (trafficllm_SHARED_LIBRARY OR trafficllm_STATIC_LIBRARY))
  set(trafficllm_FOUND FALSE)
  set(trafficllm_NOT_FOUND_MESSAGE "no header or library of trafficllm under ${_trafficllm_prefix}")
endif()
unset(_trafficllm_prefix)
unset(_trafficllm_folders)
