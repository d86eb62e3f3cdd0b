/*
 * 4 KiB random reads from a vhost-user disk through libblkio: what Blk of uvirtio is compared with.
 *
 *     blkio_reads SOCKET DEPTH SECONDS poll|block BLOCKS THINK
 *
 * poll: it never sleeps, and the back end is told that no completion events are wanted. block: it sleeps until at
 * least one request is complete. BLOCKS above 0: the disk has as many blocks of 4096 bytes, each filled with its
 * number as 64-bit words, and every read is compared with that. THINK: microseconds for which it computes before it
 * sends each request. The rate is printed, in reads per second.
 */
#include <blkio.h>
#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { BLOCK = 4096, WORDS = BLOCK / 8, DEPTH_MOST = 128, WARM_UP = 2000 };

struct slot {
    uint64_t *data;
    uint64_t block; /* that it reads now */
};

static struct slot slots[DEPTH_MOST];
static struct blkio_completion done[DEPTH_MOST];
static double think;

static void die(const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    fputs("blkio_reads: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    exit(1);
}

static void check(int code, const char *what)
{
    if (code < 0)
        die("%s: %s (%s)", what, strerror(-code), blkio_get_error_msg());
}

static double seconds_now(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

/* splitmix64: cheap, and no two runs of it in one process are the same. */
static uint64_t draw(uint64_t limit)
{
    static uint64_t state = 11;
    uint64_t mixed = state += 0x9e3779b97f4a7c15u;

    mixed = (mixed ^ mixed >> 30) * 0xbf58476d1ce4e5b9u;
    mixed = (mixed ^ mixed >> 27) * 0x94d049bb133111ebu;
    return (mixed ^ mixed >> 31) % limit;
}

static void send(struct blkioq *queue, struct slot *slot, uint64_t limit)
{
    if (think > 0)
        for (double begin = seconds_now(); seconds_now() - begin < think;)
            ;
    slot->block = draw(limit);
    blkioq_read(queue, slot->block * BLOCK, slot->data, BLOCK, slot, 0);
}

static void look_at(const struct slot *slot)
{
    uint64_t different = 0;

    for (int word = 0; word < WORDS; word++)
        different |= slot->data[word] ^ slot->block;
    if (different)
        die("block %llu has other contents", (unsigned long long)slot->block);
}

/* Complete some reads, at least one unless it polls, and send each slot again; how many. */
static int turn(struct blkioq *queue, int depth, bool poll, uint64_t blocks, uint64_t limit)
{
    int count = blkioq_do_io(queue, done, poll ? 0 : 1, depth, NULL);

    check(count, "do_io");
    for (int number = 0; number < count; number++) {
        struct slot *slot = done[number].user_data;

        check(done[number].ret, "a read");
        if (blocks)
            look_at(slot);
        send(queue, slot, limit);
    }
    return count;
}

int main(int argc, char **argv)
{
    if (argc != 7)
        die("SOCKET DEPTH SECONDS poll|block BLOCKS THINK");
    int depth = atoi(argv[2]);
    double seconds = atof(argv[3]);
    bool poll = strcmp(argv[4], "poll") == 0;
    uint64_t blocks = strtoull(argv[5], NULL, 10), capacity;
    think = atof(argv[6]) / 1e6;
    if (depth < 1 || depth > DEPTH_MOST || seconds <= 0)
        die("a depth of 1 to %d, and more than no time", DEPTH_MOST);

    struct blkio *disk;
    struct blkio_mem_region memory;
    check(blkio_create("virtio-blk-vhost-user", &disk), "create");
    check(blkio_set_str(disk, "path", argv[1]), "path");
    check(blkio_set_bool(disk, "read-only", true), "read-only");
    check(blkio_connect(disk), "connect");
    check(blkio_start(disk), "start");
    check(blkio_get_uint64(disk, "capacity", &capacity), "capacity");
    check(blkio_alloc_mem_region(disk, &memory, (size_t)depth * BLOCK), "memory");
    check(blkio_map_mem_region(disk, &memory), "map");
    struct blkioq *queue = blkio_get_queue(disk, 0);
    blkioq_set_completion_fd_enabled(queue, !poll);

    uint64_t limit = blocks ? blocks : capacity / BLOCK;
    for (int number = 0; number < depth; number++) {
        slots[number].data = (uint64_t *)((char *)memory.addr + (size_t)number * BLOCK);
        send(queue, &slots[number], limit);
    }
    for (long warm = 0; warm < WARM_UP;)
        warm += turn(queue, depth, poll, blocks, limit);
    double begin = seconds_now(), now = begin;
    long count = 0;
    while (now - begin < seconds) {
        count += turn(queue, depth, poll, blocks, limit);
        now = seconds_now();
    }
    printf("%.1f\n", (double)count / (now - begin));
    check(blkioq_do_io(queue, done, depth, depth, NULL), "the last ones");
    blkio_destroy(&disk);
    return 0;
}
