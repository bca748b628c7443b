// The functions behind ms_backend_v1, each declared with its slot's own type; plugin.cpp puts them into the table.
#pragma once
#include <metashard/backend.h>

#include <type_traits>

namespace metashard::cuda {

#define MS_SLOT(name) std::remove_pointer_t<decltype(ms_backend_v1::name)> name;
MS_SLOT(device_count)
MS_SLOT(device_info)
MS_SLOT(context_open)
MS_SLOT(context_close)
MS_SLOT(memory_allocate)
MS_SLOT(memory_free)
MS_SLOT(memory_zero)
MS_SLOT(copy_to_device)
MS_SLOT(copy_to_host)
MS_SLOT(copy_between_devices)
MS_SLOT(stream_create)
MS_SLOT(stream_destroy)
MS_SLOT(stream_synchronize)
MS_SLOT(stream_wait_event)
MS_SLOT(event_create)
MS_SLOT(event_destroy)
MS_SLOT(event_record)
MS_SLOT(event_query)
MS_SLOT(event_synchronize)
MS_SLOT(graph_begin)
MS_SLOT(graph_end)
MS_SLOT(graph_launch)
MS_SLOT(graph_destroy)
MS_SLOT(op_supported)
MS_SLOT(op_scratch)
MS_SLOT(op_run)
#undef MS_SLOT

}  // namespace metashard::cuda
