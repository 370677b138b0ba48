/*
 * Private: computes with rows of int8 of any length and address, such as keys and values of a head. It multiplies rows
 * and sums columns over rows, four integers an instruction.
 */
#ifndef ED_ROWS_CUH
#define ED_ROWS_CUH

#include "exact.cuh"

/* Returns how wide loads may be: 16, 4 or 1. `bits` are all addresses and sizes, or-ed together. */
ED_EXACT int ed_alignment(size_t bits) { return bits % 16 == 0 ? 16 : bits % 4 == 0 ? 4 : 1; }

/* Returns the sum of a[i] * b[i] over n values. */
ED_EXACT int ed_dot(const int8_t *a, const int8_t *b, int n, int alignment) {
    int sum = 0;
    if (alignment == 16) {
#pragma unroll 4
        for (int i = 0; i < n; i += 16) {
            const int4 x = *(const int4 *)(a + i), y = *(const int4 *)(b + i);
            sum = __dp4a(x.w, y.w, __dp4a(x.z, y.z, __dp4a(x.y, y.y, __dp4a(x.x, y.x, sum))));
        }
    } else if (alignment == 4) {
#pragma unroll 4
        for (int i = 0; i < n; i += 4) sum = __dp4a(*(const int *)(a + i), *(const int *)(b + i), sum);
    } else {
        for (int i = 0; i < n; i++) sum += a[i] * b[i];
    }
    return sum;
}

/* Returns values 4 column ... 4 column + 3 of a row of n in one word, with zeros beyond the end. */
ED_EXACT int ed_columns(const int8_t *row, int column, int n, int alignment) {
    if (4 * column >= n) return 0;
    if (alignment >= 4) return *(const int *)(row + 4 * column);
    unsigned word = 0;
    for (int i = 0; i < 4; i++)
        if (4 * column + i < n) word |= (unsigned)(uint8_t)row[4 * column + i] << 8 * i;
    return (int)word;
}

/* Transposes four columns of four rows: rows[i] holds row i before, and column i after. */
ED_EXACT void ed_transpose(int (&rows)[4]) {
    const unsigned a = (unsigned)rows[0], b = (unsigned)rows[1], c = (unsigned)rows[2], d = (unsigned)rows[3];
    const unsigned ab = __byte_perm(a, b, 0x5140), cd = __byte_perm(c, d, 0x5140); /* columns 0 and 1 */
    const unsigned AB = __byte_perm(a, b, 0x7362), CD = __byte_perm(c, d, 0x7362); /* columns 2 and 3 */
    rows[0] = (int)__byte_perm(ab, cd, 0x5410);
    rows[1] = (int)__byte_perm(ab, cd, 0x7632);
    rows[2] = (int)__byte_perm(AB, CD, 0x5410);
    rows[3] = (int)__byte_perm(AB, CD, 0x7632);
}

/* Returns how many lanes share the columns of a row, four each: the smallest power of two
 * that is enough. n is at most 128. */
ED_EXACT int ed_lanes_of_row(int n) {
    int lanes = 1;
    while (4 * lanes < n) lanes *= 2;
    return lanes;
}

#endif
