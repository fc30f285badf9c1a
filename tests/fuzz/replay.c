/* SPDX-License-Identifier: Apache-2.0
 *
 * Runs a fuzz target over kept inputs, without libFuzzer: replay_TARGET DIRECTORY... A finding aborts, and its file was
 * named before. An empty directory is an error: it would be a test of nothing.
 */
#include <dirent.h>
#include <sys/stat.h>

#include "target.h"

static void replay(const char *path)
{
    struct stat st;
    uint8_t *data;
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    REQUIRE(fd >= 0 && fstat(fd, &st) == 0);
    /* Exactly its size, so that a sanitizer sees what is read beyond it. */
    data = malloc(st.st_size ? (size_t)st.st_size : 1);
    REQUIRE(data && read(fd, data, (size_t)st.st_size) == st.st_size);
    close(fd);
    printf("%s\n", path);
    fflush(stdout);
    LLVMFuzzerTestOneInput(data, (size_t)st.st_size);
    free(data);
}

static int replay_directory(const char *path)
{
    DIR *directory = opendir(path);
    struct dirent *entry;
    char name[4096];
    int count = 0;

    REQUIRE(directory);
    while ((entry = readdir(directory)))
        if (entry->d_name[0] != '.') {
            snprintf(name, sizeof(name), "%s/%s", path, entry->d_name);
            replay(name);
            count++;
        }
    closedir(directory);
    return count;
}

int main(int argc, char **argv)
{
    int count = 0;

    for (int i = 1; i < argc; i++)
        count += replay_directory(argv[i]);
    REQUIRE(count > 0);
    printf("ok %d inputs\n", count);
    return 0;
}
