/* Loaded before the C library: counts the calls of a process that change files, and breaks one of them.
 *
 *     BB_FAULT_LOG=FILE      one line for each call, `KIND PATH`; the line's number is the call's
 *     BB_FAULT_AT=N          the call that is broken, counted from 1
 *     BB_FAULT_DO=kill       the process is killed in place of the call (the default)
 *     BB_FAULT_DO=ERRNO      the call fails with this number
 *     BB_FAULT_DO=short      a write writes half; other calls do all
 *     BB_FAULT_ON=1          all calls from there on are broken
 *     BB_FAULT_POWER=WHAT    with `kill`: the power fails, and what was not brought to the disk is lost
 *     BB_FAULT_SIDE=FOLDER   on the same filesystem, for what a power failure brings back
 *
 * WHAT is lost when the power fails: `data`, the bytes that were written to a file since its last `fsync`, while all
 * names stand; `names`, the files that were made, renamed or removed in a folder since its last `fsync`, while all bytes
 * stand; or `both`. A real disk may lose any part of that. Folders that were made stay: an empty one says nothing.
 * Writes into the middle of a file count as additions, which no program here does to what lasts.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define REAL(name) \
    static __typeof__(&name) real; \
    if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static long count, at;
static int loses_data, loses_names;
static const char *what_then, *log_file, *side;

__attribute__((constructor)) static void begin(void) {
    const char *number = getenv("BB_FAULT_AT"), *power = getenv("BB_FAULT_POWER");
    at = number ? atol(number) : 0;
    what_then = getenv("BB_FAULT_DO") ? getenv("BB_FAULT_DO") : "kill";
    log_file = getenv("BB_FAULT_LOG");
    side = getenv("BB_FAULT_SIDE");
    loses_data = power && strcmp(power, "names") != 0;
    loses_names = power && strcmp(power, "data") != 0;
}

/* The calls that the shim itself makes. */
static int plain_open(const char *path, int flags) {
    REAL(open);
    return real(path, flags, 0644);
}
static ssize_t plain_write(int fd, const void *bytes, size_t size) {
    REAL(write);
    return real(fd, bytes, size);
}
static int plain_linkat(int from, const char *old, const char *new, int flags) {
    REAL(linkat);
    return real(from, old, AT_FDCWD, new, flags);
}
static int plain_rename(const char *old, const char *new) {
    REAL(rename);
    return real(old, new);
}
static int plain_unlink(const char *path) {
    REAL(unlink);
    return real(path);
}
static int plain_mkdir(const char *path) {
    REAL(mkdir);
    return real(path, 0755);
}
static int plain_truncate(const char *path, off_t size) {
    REAL(truncate);
    return real(path, size);
}

/* What is lost with the power: files with bytes that are not on the disk, and names that are not. */
struct file {
    dev_t device;
    ino_t inode;
    off_t synced;
    int dirty;
};
struct name {
    enum { MADE, RENAMED, REMOVED, FOLDER_REMOVED } kind;
    char path[PATH_MAX], to[PATH_MAX];
    long kept; /* what lay at `to`, or at `path` before it was removed, under this number; 0: nothing */
};
static struct file files[4096];
static struct name *names;
static size_t file_count, name_count;
static long kept_count;

static void die(const char *why) {
    plain_write(2, why, strlen(why));
    _exit(99);
}

static void side_path(char *path, char kind, unsigned long number) {
    snprintf(path, PATH_MAX, "%s/%c%lu", side, kind, number);
}

/* A path without links in its folder, which may begin at an open folder. */
static void whole(char *out, int folder, const char *path) {
    char begin[PATH_MAX] = ".", joined[PATH_MAX * 2], parent[PATH_MAX];
    if (folder != AT_FDCWD && path[0] != '/') {
        char link[64];
        snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
        ssize_t size = readlink(link, begin, sizeof begin - 1);
        begin[size < 0 ? 0 : size] = 0;
    }
    snprintf(joined, sizeof joined, "%s%s%s", path[0] == '/' ? "" : begin, path[0] == '/' ? "" : "/", path);
    char *last = strrchr(joined, '/');
    while (last && last != joined && !last[1]) {
        *last = 0;
        last = strrchr(joined, '/');
    }
    *last = 0;
    if (!realpath(joined[0] ? joined : "/", parent)) snprintf(parent, sizeof parent, "%.*s", PATH_MAX - 1, joined);
    snprintf(out, PATH_MAX, "%.*s/%.255s", PATH_MAX - 300, parent, last + 1);
}

static struct file *file_of(int fd, int is_new) {
    struct stat facts;
    if (!loses_data || fstat(fd, &facts) != 0 || !S_ISREG(facts.st_mode)) return NULL;
    for (size_t i = 0; i < file_count; i++)
        if (files[i].inode == facts.st_ino && files[i].device == facts.st_dev) {
            if (is_new) files[i].synced = 0, files[i].dirty = 1;
            return &files[i];
        }
    if (file_count == sizeof files / sizeof *files) die("shim: too many files\n");
    struct file *file = &files[file_count];
    *file = (struct file){facts.st_dev, facts.st_ino, is_new ? 0 : facts.st_size, is_new};
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    side_path(path, 'i', facts.st_ino);
    /* A second name keeps the file reachable, whatever happens to the first. */
    if (plain_linkat(AT_FDCWD, link, path, AT_SYMLINK_FOLLOW) != 0) return NULL;
    file_count++;
    return file;
}

static struct name *add_name(int kind, int folder, const char *path) {
    if (!loses_names) return NULL;
    if (!names && !(names = calloc(16384, sizeof *names))) die("shim: no memory\n");
    if (name_count == 16384) die("shim: too many names\n");
    struct name *name = &names[name_count++];
    name->kind = kind, name->kept = 0;
    whole(name->path, folder, path);
    return name;
}

/* Gives what lies at a path a second name, so that it can come back. */
static long keep(const char *path) {
    char kept[PATH_MAX];
    side_path(kept, 'n', (unsigned long)(kept_count + 1));
    return plain_linkat(AT_FDCWD, path, kept, 0) == 0 ? ++kept_count : 0;
}

static int lies_in(const char *path, const char *folder) {
    size_t size = strlen(folder);
    return strncmp(path, folder, size) == 0 && path[size] == '/' && !strchr(path + size + 1, '/');
}

static void moved(char *path, const char *from, const char *to) {
    size_t size = strlen(from);
    char new[PATH_MAX * 2];
    if (strncmp(path, from, size) != 0 || path[size] != '/') return;
    snprintf(new, sizeof new, "%s%s", to, path + size);
    snprintf(path, PATH_MAX, "%.*s", PATH_MAX - 1, new);
}

static void synced(int fd) {
    struct stat facts;
    if (fstat(fd, &facts) != 0) return;
    if (S_ISREG(facts.st_mode)) {
        struct file *file = file_of(fd, 0);
        if (file) file->synced = facts.st_size, file->dirty = 0;
        return;
    }
    char link[64], folder[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, folder, sizeof folder - 1);
    if (size < 0 || !names) return;
    folder[size] = 0;
    size_t left = 0;
    for (size_t i = 0; i < name_count; i++) {
        struct name *name = &names[i];
        int renamed = name->kind == RENAMED;
        if (!lies_in(renamed ? name->to : name->path, folder)) {
            if (left != i) names[left] = *name;
            left++;
        } else if (renamed) {
            /* It lasts, so what was done in a folder before it got its name is now to be found there. */
            for (size_t k = 0; k < left; k++) {
                moved(names[k].path, name->path, name->to);
                moved(names[k].to, name->path, name->to);
            }
        }
    }
    name_count = left;
}

static void fail_power(void) {
    char kept[PATH_MAX];
    if (loses_data)
        for (size_t i = 0; i < file_count; i++) {
            struct stat facts;
            side_path(kept, 'i', files[i].inode);
            if (files[i].dirty && stat(kept, &facts) == 0 && facts.st_size > files[i].synced)
                plain_truncate(kept, files[i].synced);
        }
    while (name_count > 0) {
        struct name *name = &names[--name_count];
        side_path(kept, 'n', (unsigned long)name->kept);
        if (name->kind == MADE) plain_unlink(name->path);
        if (name->kind == RENAMED) plain_rename(name->to, name->path);
        if (name->kind == FOLDER_REMOVED) plain_mkdir(name->path);
        if (name->kept) plain_rename(kept, name->kind == RENAMED ? name->to : name->path);
    }
}

/* Counts a call; 1: it fails, `errno` being set; 2: it is short. The lock is held from here to `end`. */
static int hit(const char *kind, const char *path) {
    pthread_mutex_lock(&lock);
    count++;
    if (log_file) {
        char line[PATH_MAX + 32];
        int size = snprintf(line, sizeof line, "%s %s\n", kind, path);
        int fd = plain_open(log_file, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC);
        if (fd < 0 || plain_write(fd, line, (size_t)size) != size) die("shim: no log\n");
        close(fd);
    }
    if (!at || count < at || (count > at && !getenv("BB_FAULT_ON"))) return 0;
    if (strcmp(what_then, "short") == 0) return 2;
    if (strcmp(what_then, "kill") == 0) {
        fail_power();
        kill(getpid(), SIGKILL);
        for (;;) pause();
    }
    errno = atoi(what_then);
    return 1;
}

/* The lock goes, `errno` stays. */
static void end(void) {
    int before = errno;
    pthread_mutex_unlock(&lock);
    errno = before;
}

static int regular(int fd) {
    struct stat facts;
    int before = errno, is = fd > 2 && fstat(fd, &facts) == 0 && S_ISREG(facts.st_mode);
    errno = before;
    return is;
}

static void path_of(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, PATH_MAX - 1);
    path[size < 0 ? 0 : size] = 0;
}

/* A call on an open file. */
static int hit_fd(const char *kind, int fd) {
    char path[PATH_MAX];
    path_of(fd, path);
    return hit(kind, path);
}

static void written(int fd) {
    struct file *file = file_of(fd, 0);
    if (file) file->dirty = 1;
}

#define CHANGES(flags) ((flags) & (O_CREAT | O_TRUNC))

static int opened(int folder, const char *path, int flags, int fd, int was_there) {
    int before = errno;
    if (fd >= 0 && (flags & O_CREAT) && !was_there) add_name(MADE, folder, path);
    if (fd >= 0 && (!was_there || (flags & O_TRUNC))) file_of(fd, 1);
    errno = before;
    return fd;
}

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        mode_t mode = 0; \
        if (flags & O_CREAT) { \
            va_list rest; \
            va_start(rest, flags); \
            mode = va_arg(rest, mode_t); \
            va_end(rest); \
        } \
        REAL(name); \
        if (!CHANGES(flags)) return real(path, flags, mode); \
        int fd = -1; \
        if (hit("create", path) != 1) { \
            int there = faccessat(AT_FDCWD, path, F_OK, AT_SYMLINK_NOFOLLOW) == 0; \
            fd = opened(AT_FDCWD, path, flags, real(path, flags, mode), there); \
        } \
        end(); \
        return fd; \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name) \
    int name(int folder, const char *path, int flags, ...) { \
        mode_t mode = 0; \
        if (flags & O_CREAT) { \
            va_list rest; \
            va_start(rest, flags); \
            mode = va_arg(rest, mode_t); \
            va_end(rest); \
        } \
        REAL(name); \
        if (!CHANGES(flags)) return real(folder, path, flags, mode); \
        int fd = -1; \
        if (hit("create", path) != 1) { \
            int there = faccessat(folder, path, F_OK, AT_SYMLINK_NOFOLLOW) == 0; \
            fd = opened(folder, path, flags, real(folder, path, flags, mode), there); \
        } \
        end(); \
        return fd; \
    }
OPENAT(openat)
OPENAT(openat64)

int creat(const char *path, mode_t mode) { return open(path, O_CREAT | O_WRONLY | O_TRUNC, mode); }

/* A call that adds bytes to an open file; SIZE is changed when it is short. */
#define WRITE(kind, fd, size, call) \
    if (!regular(fd)) return call; \
    ssize_t done = -1; \
    int broken = hit_fd(kind, fd); \
    if (broken == 2 && size > 1) size /= 2; \
    if (broken != 1) { \
        written(fd); \
        done = call; \
    } \
    end(); \
    return done;

ssize_t write(int fd, const void *bytes, size_t size) { REAL(write); WRITE("write", fd, size, real(fd, bytes, size)) }
ssize_t pwrite(int fd, const void *bytes, size_t size, off_t place) { REAL(pwrite); WRITE("write", fd, size, real(fd, bytes, size, place)) }
ssize_t pwrite64(int fd, const void *bytes, size_t size, off64_t place) { REAL(pwrite64); WRITE("write", fd, size, real(fd, bytes, size, place)) }
ssize_t writev(int fd, const struct iovec *parts, int size) { REAL(writev); WRITE("write", fd, size, real(fd, parts, size)) }
ssize_t copy_file_range(int from, off64_t *begin, int fd, off64_t *place, size_t size, unsigned flags) {
    REAL(copy_file_range);
    WRITE("copy", fd, size, real(from, begin, fd, place, size, flags))
}
ssize_t sendfile(int fd, int from, off_t *begin, size_t size) { REAL(sendfile); WRITE("copy", fd, size, real(fd, from, begin, size)) }
ssize_t sendfile64(int fd, int from, off64_t *begin, size_t size) { REAL(sendfile64); WRITE("copy", fd, size, real(fd, from, begin, size)) }

static void cut(int fd, off_t size) {
    struct file *file = file_of(fd, 0);
    if (!file) return;
    if (file->synced > size) file->synced = size;
    file->dirty = 1;
}

#define FTRUNCATE(name, type) \
    int name(int fd, type size) { \
        REAL(name); \
        int done = -1; \
        if (hit_fd("truncate", fd) != 1) { \
            cut(fd, size); \
            done = real(fd, size); \
        } \
        end(); \
        return done; \
    }
FTRUNCATE(ftruncate, off_t)
FTRUNCATE(ftruncate64, off64_t)

#define SYNC(name) \
    int name(int fd) { \
        REAL(name); \
        int done = -1; \
        if (hit_fd("sync", fd) != 1) { \
            done = real(fd); \
            if (done == 0) synced(fd); \
        } \
        end(); \
        return done; \
    }
SYNC(fsync)
SYNC(fdatasync)

static void will_rename(int from, const char *old, int to, const char *new) {
    struct name *name = add_name(RENAMED, from, old);
    if (!name) return;
    whole(name->to, to, new);
    name->kept = keep(name->to);
}

/* A call on a path that gives 0 when done; what it is about to do is noted before, and taken back if it fails. */
#define NAMED(kind, shown, note, call) \
    int done = -1; \
    if (hit(kind, shown) != 1) { \
        size_t before = name_count; \
        note; \
        done = call; \
        if (done != 0) name_count = before; \
    } \
    end(); \
    return done;

static void will_remove(int folder, const char *path, int is_folder) {
    struct name *name = add_name(is_folder ? FOLDER_REMOVED : REMOVED, folder, path);
    if (name && !is_folder) name->kept = keep(name->path);
}

int rename(const char *old, const char *new) { REAL(rename); NAMED("rename", new, will_rename(AT_FDCWD, old, AT_FDCWD, new), real(old, new)) }
int renameat(int from, const char *old, int to, const char *new) {
    REAL(renameat);
    NAMED("rename", new, will_rename(from, old, to, new), real(from, old, to, new))
}
int renameat2(int from, const char *old, int to, const char *new, unsigned flags) {
    REAL(renameat2);
    NAMED("rename", new, will_rename(from, old, to, new), real(from, old, to, new, flags))
}
int unlink(const char *path) { REAL(unlink); NAMED("unlink", path, will_remove(AT_FDCWD, path, 0), real(path)) }
int unlinkat(int folder, const char *path, int flags) {
    REAL(unlinkat);
    NAMED("unlink", path, will_remove(folder, path, flags & AT_REMOVEDIR), real(folder, path, flags))
}
int remove(const char *path) { return unlink(path) == 0 ? 0 : rmdir(path); }
int rmdir(const char *path) { REAL(rmdir); NAMED("rmdir", path, will_remove(AT_FDCWD, path, 1), real(path)) }
int mkdir(const char *path, mode_t mode) { REAL(mkdir); NAMED("mkdir", path, , real(path, mode)) }
int mkdirat(int folder, const char *path, mode_t mode) { REAL(mkdirat); NAMED("mkdir", path, , real(folder, path, mode)) }
int link(const char *old, const char *new) { REAL(link); NAMED("link", new, add_name(MADE, AT_FDCWD, new), real(old, new)) }
int linkat(int from, const char *old, int to, const char *new, int flags) {
    REAL(linkat);
    NAMED("link", new, add_name(MADE, to, new), real(from, old, to, new, flags))
}
int symlink(const char *old, const char *new) { REAL(symlink); NAMED("link", new, add_name(MADE, AT_FDCWD, new), real(old, new)) }
int truncate(const char *path, off_t size) { REAL(truncate); NAMED("truncate", path, , real(path, size)) }
