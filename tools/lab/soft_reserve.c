/*
 * A UEFI program that starts the kernel it carries, with one more line in the firmware's memory map: a range of
 * conventional memory for a special purpose (EFI_MEMORY_SP, UEFI 2.10, 7.2.3). Linux on ARM64 has no parameter for
 * that; such a range becomes "Soft Reserved" in /proc/iomem, and dax_hmem's.
 *
 * BASE and SIZE are given to the compiler, in bytes. Nothing of the range is touched: at boot no memory is plugged.
 */

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long long u64;

#define EFI_BUFFER_TOO_SMALL 0x8000000000000005ULL
#define EFI_CONVENTIONAL_MEMORY 7
#define UC_WC_WT_WB 0xf
#define EFI_MEMORY_SP 0x40000

struct descriptor {
    u32 type, padding;
    u64 physical, virtual, pages, attribute;
};

/* Boot services in the order of their table (UEFI 2.10, 4.4.1), after a header of 24 bytes. */
struct boot_services {
    u8 header[24];
    u64 before_memory_map[4];
    u64 (*get_memory_map)(u64 *size, u8 *map, u64 *key, u64 *descriptor_size, u32 *version);
    u64 before_handle_protocol[11];
    u64 (*handle_protocol)(void *handle, const u8 *guid, void *interface);
    u64 before_load_image[5];
    u64 (*load_image)(u8 policy, void *parent, void *path, const u8 *source, u64 size, void **image);
    u64 (*start_image)(void *image, u64 *exit_size, u64 *exit_data);
};

struct system_table {
    u8 before_boot_services[96];
    struct boot_services *boot;
};

/* EFI_LOADED_IMAGE_PROTOCOL (9.1). */
struct loaded_image {
    u8 before_path[32];
    void *path, *reserved;
    u32 options_size, padding;
    void *options;
};

static const u8 loaded_image_guid[16] = {0xa1, 0x31, 0x1b, 0x5b, 0x62, 0x95, 0xd2, 0x11,
                                         0x8e, 0x3f, 0x00, 0xa0, 0xc9, 0x69, 0x72, 0x3b};

extern const u8 kernel_start[], kernel_end[];

static u64 (*firmwares_map)(u64 *, u8 *, u64 *, u64 *, u32 *);

static u64 with_our_line(u64 *size, u8 *map, u64 *key, u64 *descriptor_size, u32 *version)
{
    u64 room = *size;
    u64 status = firmwares_map(size, map, key, descriptor_size, version);
    if (status == 0 && *size + *descriptor_size > room)
        status = EFI_BUFFER_TOO_SMALL;
    if (status == 0) {
        struct descriptor *line = (struct descriptor *)(map + *size);
        line->type = EFI_CONVENTIONAL_MEMORY;
        line->physical = BASE;
        line->virtual = 0;
        line->pages = SIZE >> 12;
        line->attribute = UC_WC_WT_WB | EFI_MEMORY_SP;
    }
    if (status == 0 || status == EFI_BUFFER_TOO_SMALL)
        *size += *descriptor_size;
    return status;
}

u64 efi_main(void *image, struct system_table *system)
{
    struct boot_services *boot = system->boot;
    struct loaded_image *ours, *kernels;
    void *kernel;
    u64 status = boot->handle_protocol(image, loaded_image_guid, &ours);
    if (status == 0)
        status = boot->load_image(0, image, ours->path, kernel_start, kernel_end - kernel_start, &kernel);
    if (status == 0)
        status = boot->handle_protocol(kernel, loaded_image_guid, &kernels);
    if (status != 0)
        return status;
    kernels->options_size = ours->options_size; /* the kernel's command line */
    kernels->options = ours->options;
    firmwares_map = boot->get_memory_map;
    boot->get_memory_map = with_our_line;
    return boot->start_image(kernel, 0, 0);
}
