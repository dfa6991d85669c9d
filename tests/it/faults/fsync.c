// Stands between a program and fsync(2), and plays a disk that fails or a machine that loses power. Preloaded; calls are
// counted over all processes, from 1, in the folder DISK. What has reached the disk is kept there as well: the content of a
// synced file and the entries of a synced folder, each under its inode's number.
//
//   FAIL=n  the n-th call fails
//   CUT=n   at the n-th call, and at every later one, the process dies before anything reaches the disk
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

static long number(const char *name) {
    const char *text = getenv(name);
    return text ? atol(text) : 0;
}

static void keep(int fd, const char *disk) {
    struct stat facts;
    char here[64], path[4096], next[4112];
    if (fstat(fd, &facts)) return;
    snprintf(here, sizeof here, "/proc/self/fd/%d", fd);
    snprintf(path, sizeof path, "%s/%lu", disk, (unsigned long)facts.st_ino);
    snprintf(next, sizeof next, "%s.new", path);
    FILE *out = fopen(next, "w");
    if (!out) abort();
    if (S_ISDIR(facts.st_mode)) {
        DIR *folder = opendir(here);
        for (struct dirent *entry; folder && (entry = readdir(folder));)
            if (entry->d_name[0] != '.' || entry->d_name[1] > '.') fprintf(out, "%lu %s\n", (unsigned long)entry->d_ino, entry->d_name);
        if (folder) closedir(folder);
    } else {
        FILE *in = fopen(here, "r");
        for (int c; in && (c = getc(in)) != EOF;) putc(c, out);
        if (in) fclose(in);
    }
    if (fclose(out) || rename(next, path)) abort();
}

int fsync(int fd) {
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    const char *disk = getenv("DISK");
    if (!disk) return real(fd);
    char path[4096];
    snprintf(path, sizeof path, "%s/count", disk);
    int count = open(path, O_WRONLY | O_APPEND | O_CREAT, 0600);
    if (count < 0 || flock(count, LOCK_EX) || write(count, "x", 1) != 1) abort();
    long n = lseek(count, 0, SEEK_END);
    int outcome = -1;
    if (number("CUT") && n >= number("CUT")) {
        raise(SIGKILL);
    } else if (n == number("FAIL")) {
        errno = EIO;
    } else if (!(outcome = real(fd))) {
        keep(fd, disk);
    }
    int error = errno;
    close(count);
    errno = error;
    return outcome;
}
