// Holds cu.h against the toolkit's cuda.h at compile time: every value, every signature. Compiled where a toolkit is found, and
// linked into nothing: the plugin itself never sees cuda.h.
#include "cu.h"

#if __has_include(<cuda.h>)
#include <cuda.h>

#include <type_traits>

namespace ours = metashard::cuda;

namespace {

// The same register or stack slot carries both: equal size, and both are pointers or both whole numbers (enums included).
template <class A, class B>
constexpr bool same_slot =
    sizeof(A) == sizeof(B) && std::is_pointer_v<A> == std::is_pointer_v<B> &&
    (std::is_pointer_v<A> || ((std::is_integral_v<A> || std::is_enum_v<A>) && (std::is_integral_v<B> || std::is_enum_v<B>)));

template <class Ours, class Real>
struct same_call : std::false_type {};
template <class R, class... A, class S, class... B>
  requires(sizeof...(A) == sizeof...(B))
struct same_call<R (*)(A...), S (*)(B...)> : std::bool_constant<same_slot<R, S> && (same_slot<A, B> && ...)> {};

#define X(name, value) static_assert(static_cast<int>(ours::name) == static_cast<int>(::name), #name);
MS_CU_RESULTS(X)
#undef X
static_assert(unsigned{ours::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR} == ::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
static_assert(unsigned{ours::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR} == ::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
static_assert(unsigned{ours::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL} == ::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
static_assert(unsigned{ours::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES} ==
              ::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES);
static_assert(unsigned{ours::CU_STREAM_NON_BLOCKING} == ::CU_STREAM_NON_BLOCKING);
static_assert(unsigned{ours::CU_EVENT_DISABLE_TIMING} == ::CU_EVENT_DISABLE_TIMING);
static_assert(ours::host_alloc_portable == CU_MEMHOSTALLOC_PORTABLE);

#define MS_CU(name, parameters) static_assert(same_call<decltype(ours::CuFunctions::name), decltype(&::name)>::value, #name);
#include "cu_functions.def"
#undef MS_CU

}  // namespace
#endif
