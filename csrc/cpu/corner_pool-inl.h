// Loop bodies of corner_pool, compiled once per instruction set (cpu/foreach_isa.h).
//
// Neighbouring lines are the lanes of vectors: `width` of them, element i of the walk in the row at i * step (negative
// if the walk is from the last element to the first). Where the lines are contiguous themselves (the horizontal
// directions of NCHW), 16 of them are transposed into a tile and walked there. Sums add from the end of the walk, one
// by one, so every instruction set gives the same bits.

#include "cpu/transpose-inl.h"

// f(std::integral_constant<int, lanes>, x) over [0, width).
template <typename T, typename F>
__attribute__((always_inline)) inline void for_lanes(int64_t width, const F& f) {
  constexpr int full = full_lanes<T>;
  int64_t x = 0;
  for (; x + full <= width; x += full) f(std::integral_constant<int, full>{}, x);
  if constexpr (full > 4) {
    for (; x + 4 <= width; x += 4) f(std::integral_constant<int, 4>{}, x);
  }
  for (; x < width; ++x) f(std::integral_constant<int, 1>{}, x);
}

// takes_over, lane by lane.
template <typename V>
__attribute__((always_inline)) inline auto taken_over(V later, V before) {
  return (later >= before) | (later != later);
}

template <typename T>
inline void fill_row(T* row, int64_t width, T value) {
  for (int64_t x = 0; x < width; ++x) row[x] = value;
}

// out = the running maximum; `best` [width] carries it.
template <typename T, typename S>
void carry_maximum(const S* in, int64_t step, int64_t length, int64_t width, T* best, S* out) {
  for (int64_t i = 0; i < length; ++i, in += step, out += step) {
    for_lanes<T>(
        width, CVOPS_INLINED(auto n, int64_t x) {
          constexpr int lanes = n;
          const auto value = load_as<T, lanes>(in + x), before = load<T, lanes>(best + x);
          const auto now = taken_over(value, before) ? value : before;
          store<T, lanes>(best + x, now);
          store_as<T, lanes>(out + x, now);
        });
  }
}

// out = values at the place of the running maximum of `in`; `best` and `held` [width] carry the two.
template <typename T, typename S>
void carry_values(const S* in, const S* values, int64_t step, int64_t length, int64_t width, T* best, T* held, S* out) {
  for (int64_t i = 0; i < length; ++i, in += step, values += step, out += step) {
    for_lanes<T>(
        width, CVOPS_INLINED(auto n, int64_t x) {
          constexpr int lanes = n;
          const auto value = load_as<T, lanes>(in + x), before = load<T, lanes>(best + x);
          const auto record = taken_over(value, before);
          const auto now = record ? load_as<T, lanes>(values + x) : load<T, lanes>(held + x);
          store<T, lanes>(best + x, record ? value : before);
          store<T, lanes>(held + x, now);
          store_as<T, lanes>(out + x, now);
        });
  }
}

// records [length][width] = -1 where an element takes over, 0 elsewhere.
template <typename T, typename S>
void mark_records(const S* in, int64_t step, int64_t length, int64_t width, T* best, int8_t* records) {
  for (int64_t i = 0; i < length; ++i, in += step, records += width) {
    for_lanes<T>(
        width, CVOPS_INLINED(auto n, int64_t x) {
          constexpr int lanes = n;
          const auto value = load_as<T, lanes>(in + x), before = load<T, lanes>(best + x);
          const auto record = taken_over(value, before);
          store<T, lanes>(best + x, record ? value : before);
          store<int8_t, lanes>(records + x, __builtin_convertvector(record, Vec<int8_t, lanes>));
        });
  }
}

// out at a record = the sum of grad from there to the next record, 0 elsewhere; from the end of the walk to its start.
// `sum` [width] carries what has found no record yet.
template <bool saturate, typename T, typename S>
void sum_to_records(const S* grad, int64_t step, int64_t length, int64_t width, const int8_t* records, T* sum, S* out) {
  typedef std::conditional_t<sizeof(T) == 4, int32_t, int64_t> I;
  for (int64_t i = length - 1; i >= 0; --i) {
    for_lanes<T>(
        width, CVOPS_INLINED(auto n, int64_t x) {
          constexpr int lanes = n;
          const auto total = load<T, lanes>(sum + x) + load_as<T, lanes>(grad + i * step + x);
          const auto record = __builtin_convertvector(load<int8_t, lanes>(records + i * width + x), Vec<I, lanes>) != 0;
          store<T, lanes>(sum + x, record ? Vec<T, lanes>{} : total);
          store_gradient<saturate, T, lanes>(out + i * step + x, record ? total : Vec<T, lanes>{});
        });
  }
}

// Columns: first elements of the walk at in and out. `scratch` is [2][width].
template <typename T, typename S>
void pool_columns(const S* in, int64_t step, int64_t length, int64_t width, T* scratch, S* out) {
  fill_row(scratch, width, static_cast<T>(-__builtin_inf()));
  carry_maximum(in, step, length, width, scratch, out);
}

template <typename T, typename S>
void gather_columns(const S* values, const S* in, int64_t step, int64_t length, int64_t width, T* scratch, S* out) {
  fill_row(scratch, width, static_cast<T>(-__builtin_inf()));
  carry_values(in, values, step, length, width, scratch, scratch + width, out);
}

template <typename T, typename S>
void spread_columns(
    const S* grad, const S* in, int64_t step, int64_t length, int64_t width, T* scratch, int8_t* records, S* out) {
  fill_row(scratch, width, static_cast<T>(-__builtin_inf()));
  mark_records(in, step, length, width, scratch, records);
  fill_row(scratch, width, T(0));
  sum_to_records<true>(grad, step, length, width, static_cast<const int8_t*>(records), scratch, out);
}

// A piece of a walk along rows: `n` elements from x of the row on; `first` is the index in the tile of the first one.
struct RowPiece {
  int64_t x, n, first, step;
};
inline RowPiece piece_of(int64_t done, int64_t length, bool reverse, int64_t chunk) {
  const int64_t n = length - done < chunk ? length - done : chunk;
  if (reverse) return {length - done - n, n, (n - 1) * 16, -16};
  return {done, n, 0, 16};
}

// Rows: up to 16 of `length` elements, one after another. `scratch` is [2][16], then a tile of [chunk][16]; another for
// gather_rows.
template <typename T, typename S>
void pool_rows(const S* in, int64_t rows, int64_t length, bool reverse, int64_t chunk, T* scratch, S* out) {
  T* const tile = scratch + 32;
  fill_row(scratch, 16, static_cast<T>(-__builtin_inf()));
  for (int64_t done = 0; done < length; done += chunk) {
    const RowPiece p = piece_of(done, length, reverse, chunk);
    pack_window(in + p.x, length, rows, p.n, tile);
    carry_maximum(static_cast<const T*>(tile) + p.first, p.step, p.n, 16, scratch, tile + p.first);
    unpack_window<false>(static_cast<const T*>(tile), rows, p.n, out + p.x, length);
  }
}

template <typename T, typename S>
void gather_rows(
    const S* values, const S* in, int64_t rows, int64_t length, bool reverse, int64_t chunk, T* scratch, S* out) {
  T* const tile = scratch + 32;
  T* const value_tile = tile + 16 * chunk;
  fill_row(scratch, 16, static_cast<T>(-__builtin_inf()));
  for (int64_t done = 0; done < length; done += chunk) {
    const RowPiece p = piece_of(done, length, reverse, chunk);
    pack_window(in + p.x, length, rows, p.n, tile);
    pack_window(values + p.x, length, rows, p.n, value_tile);
    carry_values(static_cast<const T*>(tile) + p.first, static_cast<const T*>(value_tile) + p.first, p.step, p.n, 16,
        scratch, scratch + 16, value_tile + p.first);
    unpack_window<false>(static_cast<const T*>(value_tile), rows, p.n, out + p.x, length);
  }
}

template <typename T, typename S>
void spread_rows(const S* grad, const S* in, int64_t rows, int64_t length, bool reverse, int64_t chunk, T* scratch,
    int8_t* records, S* out) {
  T* const tile = scratch + 32;
  fill_row(scratch, 16, static_cast<T>(-__builtin_inf()));
  for (int64_t done = 0; done < length; done += chunk) {
    const RowPiece p = piece_of(done, length, reverse, chunk);
    pack_window(in + p.x, length, rows, p.n, tile);
    mark_records(static_cast<const T*>(tile) + p.first, p.step, p.n, 16, scratch, records + done * 16);
  }
  fill_row(scratch, 16, T(0));
  for (int64_t done = (length - 1) / chunk * chunk; done >= 0; done -= chunk) {
    const RowPiece p = piece_of(done, length, reverse, chunk);
    pack_window(grad + p.x, length, rows, p.n, tile);
    sum_to_records<false>(static_cast<const T*>(tile) + p.first, p.step, p.n, 16,
        static_cast<const int8_t*>(records + done * 16), scratch, tile + p.first);
    unpack_window<true>(static_cast<const T*>(tile), rows, p.n, out + p.x, length);
  }
}
