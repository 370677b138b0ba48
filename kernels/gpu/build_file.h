/*
 * Private: a file of a build directory, as both GPU engines read it.
 */
#ifndef ED_BUILD_FILE_H
#define ED_BUILD_FILE_H

#include <elf.h>
#include <fcntl.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>

#pragma GCC visibility push(hidden) /* for the reason given in driver.h */

/* Holds the path directory/name; the text is empty if that is too long. */
struct ed_build_path {
    char text[4096];

    ed_build_path(const char *directory, const char *name) {
        const size_t length = std::strlen(directory), rest = std::strlen(name) + 1;
        text[0] = 0;
        if (length + 1 + rest > sizeof text) return;
        std::memcpy(text, directory, length);
        text[length] = '/';
        std::memcpy(text + length + 1, name, rest);
    }
    bool exists() const { return access(text, R_OK) == 0; }
};

/* Maps the bytes of a file, readable while the object lives. The pointer is null if the file is missing or empty. */
class ed_build_file {
  public:
    ed_build_file(const char *directory, const char *name) {
        const int file = open(ed_build_path(directory, name).text, O_RDONLY | O_CLOEXEC);
        if (file < 0) return;
        struct stat facts;
        if (!fstat(file, &facts) && S_ISREG(facts.st_mode) && facts.st_size > 0) {
            size = static_cast<size_t>(facts.st_size);
            void *mapped = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file, 0);
            if (mapped != MAP_FAILED) bytes = static_cast<const unsigned char *>(mapped);
        }
        close(file);
    }
    ~ed_build_file() {
        if (bytes) munmap(const_cast<unsigned char *>(bytes), size);
    }
    ed_build_file(const ed_build_file &) = delete;
    ed_build_file &operator=(const ed_build_file &) = delete;

    /* Tells whether it is a complete ELF file, as a cubin is. The driver is given an address without a length,
     * so it would read beyond the end of a truncated file. */
    bool is_elf() const {
        Elf64_Ehdr header;
        if (!bytes || !holds(0, sizeof header)) return false;
        std::memcpy(&header, bytes, sizeof header);
        if (std::memcmp(header.e_ident, ELFMAG, SELFMAG) || header.e_ident[EI_CLASS] != ELFCLASS64) return false;
        if (header.e_shentsize != sizeof(Elf64_Shdr) || !header.e_shnum) return false;
        if (!holds(header.e_shoff, uint64_t{header.e_shnum} * sizeof(Elf64_Shdr))) return false;
        if (!holds(header.e_phoff, uint64_t{header.e_phnum} * header.e_phentsize)) return false;
        for (unsigned i = 0; i < header.e_shnum; i++) {
            Elf64_Shdr section;
            std::memcpy(&section, bytes + header.e_shoff + i * sizeof section, sizeof section);
            if (section.sh_type != SHT_NOBITS && !holds(section.sh_offset, section.sh_size)) return false;
        }
        return true;
    }

    const unsigned char *bytes = nullptr;
    size_t size = 0;

  private:
    bool holds(uint64_t at, uint64_t count) const { return at <= size && count <= size - at; }
};

#pragma GCC visibility pop

#endif
