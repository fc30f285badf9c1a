/* SPDX-License-Identifier: Apache-2.0
 *
 * tz_files_read on TMPDIR's file system: many files and large ones, by several workers, against what one call of FIEMAP
 * for each file says.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fiemap.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "check.h"
#include "tz/files.h"

#define MANY    1500
#define LARGE   3
#define COUNT   (MANY + LARGE)
#define EXTENTS 4000
#define LONGEST 128

static char directory[LONGEST - 32];
static char names[COUNT][LONGEST];
static const char *name_list[COUNT];
static int fds[COUNT];

static void make_file(int i)
{
    snprintf(names[i], sizeof names[i], "%s/%d", directory, i);
    name_list[i] = names[i];
    fds[i] = open(names[i], O_CREAT | O_RDWR | O_CLOEXEC, 0600);
    CHECK(fds[i] >= 0);
    char block[4096];
    memset(block, i, sizeof block);
    if (i < MANY) {
        CHECK_EQ(pwrite(fds[i], block, 1 + i, 0), 1 + i);
        return;
    }
    /* Every other block of the beginning, one extent across the borders of ranges, and something past the size. */
    for (int e = 0; e < EXTENTS; e++)
        CHECK_EQ(pwrite(fds[i], block, sizeof block, (off_t)e * 8192), sizeof block);
    CHECK_EQ(fallocate(fds[i], 0, 60 * TZ_MIB, 20 * TZ_MIB), 0);
    CHECK_EQ(fallocate(fds[i], FALLOC_FL_KEEP_SIZE, 100 * TZ_MIB, TZ_MIB), 0);
}

static void make_files(void)
{
    const char *tmp = getenv("TMPDIR");
    snprintf(directory, sizeof directory, "%s/timezero-files-XXXXXX", tmp ? tmp : "/tmp");
    CHECK(mkdtemp(directory));
    struct rlimit limit;
    CHECK_EQ(getrlimit(RLIMIT_NOFILE, &limit), 0);
    limit.rlim_cur = limit.rlim_max;
    CHECK_EQ(setrlimit(RLIMIT_NOFILE, &limit), 0);
    for (int i = 0; i < COUNT; i++)
        make_file(i);
    CHECK_EQ(syncfs(fds[0]), 0);
}

/* Joined where they continue each other: where one extent ends is a file system's own affair. */
static uint64_t next_run(const uint64_t *logical, const uint64_t *physical, const uint64_t *length,
                         const uint64_t *flags, uint64_t *at, uint64_t end, uint64_t run[3])
{
    uint64_t i = *at, flag = flags[i] & FIEMAP_EXTENT_UNWRITTEN;
    run[0] = logical[i];
    run[1] = physical[i];
    run[2] = length[i];
    for (i++; i < end && logical[i] == run[0] + run[2] && physical[i] == run[1] + run[2] &&
              (flags[i] & FIEMAP_EXTENT_UNWRITTEN) == flag;
         i++)
        run[2] += length[i];
    *at = i;
    return flag;
}

static void check_extents(const tz_files *files, int i)
{
    static struct {
        struct fiemap map;
        struct fiemap_extent extents[2 * EXTENTS];
    } all;
    static uint64_t logical[2 * EXTENTS], physical[2 * EXTENTS], length[2 * EXTENTS], flags[2 * EXTENTS];
    memset(&all, 0, sizeof all);
    all.map.fm_length = FIEMAP_MAX_OFFSET;
    all.map.fm_extent_count = 2 * EXTENTS;
    CHECK_EQ(ioctl(fds[i], FS_IOC_FIEMAP, &all), 0);
    for (uint32_t e = 0; e < all.map.fm_mapped_extents; e++) {
        logical[e] = all.extents[e].fe_logical;
        physical[e] = all.extents[e].fe_physical;
        length[e] = all.extents[e].fe_length;
        flags[e] = all.extents[e].fe_flags;
    }
    uint64_t at = i ? files->facts[i - 1].extents_end : 0, end = files->facts[i].extents_end, expected = 0;
    while (at < end && expected < all.map.fm_mapped_extents) {
        uint64_t run[3], wish[3];
        uint64_t flag = next_run(files->logical, files->physical, files->length, files->flags, &at, end, run);
        CHECK_EQ(flag, next_run(logical, physical, length, flags, &expected, all.map.fm_mapped_extents, wish));
        for (int k = 0; k < 3; k++)
            CHECK_EQ(run[k], wish[k]);
    }
    CHECK_EQ(at, end);
    CHECK_EQ(expected, all.map.fm_mapped_extents);
}

static void test_many_files(void)
{
    CHECK_EQ(fsetxattr(fds[7], "user.one", "1", 1, 0), 0);
    CHECK_EQ(fsetxattr(fds[MANY + 1], "user.two", "", 0, 0), 0);
    tz_files *files;
    CHECK_EQ(tz_files_read(&files, fds, name_list, COUNT, TZ_FILES_ATTRIBUTES), 0);
    CHECK_EQ(files->count, COUNT);
    for (int i = 0; i < COUNT; i++) {
        struct stat st;
        CHECK_EQ(fstat(fds[i], &st), 0);
        CHECK_EQ(files->facts[i].error, 0);
        CHECK_EQ(files->facts[i].named, TZ_NAMED_SAME);
        CHECK_EQ(files->facts[i].inode, st.st_ino);
        CHECK_EQ(files->facts[i].size, st.st_size);
        check_extents(files, i);
    }
    /* The root of a test may have attributes of a security module on each: ours are among them. */
    bool one = false, two = false;
    for (uint64_t at = 0; at < files->bytes;) {
        uint32_t lengths[2];
        memcpy(lengths, files->attributes + at, sizeof lengths);
        const char *name = (const char *)files->attributes + at + 8;
        one |= lengths[0] == 8 && lengths[1] == 1 && !memcmp(name, "user.one1", 9) &&
               at >= files->facts[6].attributes_end && at < files->facts[7].attributes_end;
        two |= lengths[0] == 8 && lengths[1] == 0 && !memcmp(name, "user.two", 8) &&
               at >= files->facts[MANY].attributes_end;
        at += 8 + lengths[0] + lengths[1];
    }
    CHECK(one && two);
    tz_files_free(files);
}

static void test_names(void)
{
    CHECK_EQ(unlink(names[3]), 0);
    CHECK_EQ(rename(names[5], names[4]), 0);
    tz_files *files;
    CHECK_EQ(tz_files_read(&files, fds, name_list, 7, TZ_FILES_CONSTANTS), 0);
    const uint32_t expected[] = {TZ_NAMED_SAME,  TZ_NAMED_SAME, TZ_NAMED_SAME, TZ_NAMED_GONE,
                                 TZ_NAMED_OTHER, TZ_NAMED_GONE, TZ_NAMED_SAME};
    for (int i = 0; i < 7; i++)
        CHECK_EQ(files->facts[i].named, expected[i]);
    CHECK_EQ(files->facts[3].links, 0);
    CHECK_EQ(files->bytes, 0);
    tz_files_free(files);
}

static void test_failures(void)
{
    int pipes[2], some[3];
    CHECK_EQ(pipe(pipes), 0);
    some[0] = -1;
    some[1] = pipes[0];
    some[2] = fds[0];
    tz_files *files;
    CHECK_EQ(tz_files_read(&files, some, NULL, 3, 0), 0);
    CHECK_EQ(files->facts[0].step, TZ_FILE_STATUS);
    CHECK_EQ(files->facts[0].error, EBADF);
    CHECK_EQ(files->facts[1].step, TZ_FILE_EXTENTS);
    CHECK(files->facts[1].error == EOPNOTSUPP || files->facts[1].error == ENOTTY);
    CHECK_EQ(files->facts[2].error, 0);
    tz_files_free(files);
    CHECK_EQ(tz_files_read(&files, some, NULL, 0, 0), 0);
    CHECK_EQ(files->extents, 0);
    tz_files_free(files);
    CHECK_EQ(tz_files_read(&files, some, NULL, 0, 1 << 7), -EINVAL);
    tz_files_free(NULL);
    close(pipes[0]);
    close(pipes[1]);
}

int main(void)
{
    make_files();
    RUN(test_many_files);
    RUN(test_names);
    RUN(test_failures);
    for (int i = 0; i < COUNT; i++) {
        close(fds[i]);
        unlink(names[i]);
    }
    CHECK_EQ(rmdir(directory), 0);
    return 0;
}
