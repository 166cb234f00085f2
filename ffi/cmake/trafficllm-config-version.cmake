# The version stands in the header, and only there. A request for X.Y takes a later X; before 1.0 a later 0.Y.

get_filename_component(_trafficllm_include "${CMAKE_CURRENT_LIST_DIR}/../../../include" ABSOLUTE)
foreach(_trafficllm_part MAJOR MINOR PATCH)
  file(STRINGS "${_trafficllm_include}/trafficllm.h" _trafficllm_line REGEX "^#define TLLM_VERSION_${_trafficllm_part} [0-9]+$")
  string(REGEX REPLACE "^.* " "" _trafficllm_${_trafficllm_part} "${_trafficllm_line}")
endforeach()
set(PACKAGE_VERSION "${_trafficllm_MAJOR}.${_trafficllm_MINOR}.${_trafficllm_PATCH}")

set(PACKAGE_VERSION_COMPATIBLE FALSE)
set(PACKAGE_VERSION_EXACT FALSE)
if(PACKAGE_FIND_VERSION VERSION_EQUAL PACKAGE_VERSION)
  set(PACKAGE_VERSION_EXACT TRUE)
endif()
if(NOT PACKAGE_FIND_VERSION VERSION_GREATER PACKAGE_VERSION AND PACKAGE_FIND_VERSION_MAJOR STREQUAL _trafficllm_MAJOR)
  if(NOT _trafficllm_MAJOR STREQUAL "0" OR PACKAGE_FIND_VERSION_MINOR STREQUAL _trafficllm_MINOR)
    set(PACKAGE_VERSION_COMPATIBLE TRUE)
  endif()
endif()
