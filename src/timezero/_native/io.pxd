# SPDX-License-Identifier: Apache-2.0
# C declarations of csrc/include/tz/io.h and file.h: what Cython needs of them, nothing of its own.
from libc.stdint cimport int64_t, uint32_t, uint64_t


cdef extern from "tz/io.h" nogil:
    ctypedef struct tz_io:
        pass

    ctypedef enum tz_io_kind:
        TZ_IO_AUTO
        TZ_IO_URING
        TZ_IO_THREADS

    ctypedef struct tz_io_message:
        void (*run)(tz_io_message *message) noexcept nogil

    ctypedef struct tz_io_config:
        tz_io_kind kind
        uint32_t depth
        uint32_t threads
        uint32_t poll_us

    int tz_io_create(tz_io **out, const tz_io_config *config)
    void tz_io_destroy(tz_io *io)
    tz_io_kind tz_io_engine(const tz_io *io)
    int tz_io_probe_uring(const char **step)
    int tz_io_run(tz_io *io, int64_t timeout_ns)
    uint32_t tz_io_inflight(const tz_io *io)
    void tz_io_post(tz_io *io, tz_io_message *message)


cdef extern from "tz/file.h" nogil:
    enum:
        TZ_FILE_WRITE
        TZ_FILE_BUFFERED
        TZ_FILE_EXCL

    ctypedef struct tz_file:
        int fd
        bint block_device
        bint direct
        bint writable
        uint32_t memory_align
        uint32_t offset_align
        uint32_t block_size
        uint64_t size
        uint64_t device
        uint64_t inode

    int tz_file_open(tz_file *out, const char *path, unsigned flags)
    int tz_file_adopt(tz_file *out, int fd, unsigned flags)
    int tz_file_reopen(tz_file *out, const tz_file *file, unsigned flags)
    void tz_file_close(tz_file *file)
