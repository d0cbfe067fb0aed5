/* One instruction set's kernels. _native.c includes this file once per set, with
 *   ISA(name)  the name with the set's suffix      TARGET  the function attribute
 *   LANES      floats in one vector                ROWS    rows of a register tile (2 * ROWS accumulators)
 * A panel is 2 * LANES tokens laid out transposed, panel[p * PANEL + lane], so that lanes run over tokens. */

#define PANEL (2 * LANES)
typedef float ISA(vec) __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int32_t ISA(ivec) __attribute__((vector_size(4 * LANES), aligned(4)));
#define VEC ISA(vec)
#define LOAD(p) (*(const VEC *)(p))
#define STORE(p, x) (*(VEC *)(p) = (x))

TARGET static inline VEC ISA(vmax)(VEC x, float floor) {
  const VEC y = (VEC){0} + floor;
  const ISA(ivec) keep = x > y; /* false for NaN */
  return (VEC)(((ISA(ivec))x & keep) | ((ISA(ivec))y & ~keep));
}

/* exp(x) for x <= 0 to about 2 ulp: 2^n * P(f), P the degree-6 Taylor-minimax polynomial on [-0.5, 0.5]. */
TARGET static inline VEC ISA(vexp)(VEC x) {
  VEC t = x * 1.44269504088896341f;
  t = ISA(vmax)(t, -126.0f);
  VEC n = (t + 12582912.0f) - 12582912.0f;
  VEC f = t - n;
  VEC y = f * 1.535336188319500e-4f + 1.339887440266574e-3f;
  y = y * f + 9.618437357674640e-3f;
  y = y * f + 5.550332471162809e-2f;
  y = y * f + 2.402264791363012e-1f;
  y = y * f + 6.931472028550421e-1f;
  y = y * f + 1.0f;
  ISA(ivec) e = __builtin_convertvector(n, ISA(ivec));
  return (VEC)((ISA(ivec))y + (e << 23));
}

/* acc[r][0..1] = sum_p a[r * stride + p] * panel[p], for `rows` <= ROWS rows of length d. */
TARGET static inline void ISA(tile)(const float *a, int64_t stride, int rows, int d, const float *panel,
                                    VEC acc[ROWS][2]) {
  const float *row[ROWS];
  for (int r = 0; r < ROWS; r++) row[r] = a + (r < rows ? r : rows - 1) * stride;
  VEC c[ROWS][2];
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; r++) c[r][0] = c[r][1] = (VEC){0};
  for (int p = 0; p < d; p++) {
    VEC x0 = LOAD(panel + (int64_t)p * PANEL), x1 = LOAD(panel + (int64_t)p * PANEL + LANES);
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; r++) {
      VEC w = (VEC){0} + row[r][p];
      c[r][0] += w * x0;
      c[r][1] += w * x1;
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; r++) {
    acc[r][0] = c[r][0];
    acc[r][1] = c[r][1];
  }
}

TARGET static void ISA(pack)(const float *x, int64_t stride, int n, int d, float *panel) {
  memset(panel, 0, sizeof(float) * (size_t)d * PANEL);
  for (int i = 0; i < n; i++)
    for (int p = 0; p < d; p++) panel[(int64_t)p * PANEL + i] = x[i * stride + p];
}

/* Adds queries [i0, i1) of one head to the column sums of all its keys. See columns() in _native.c. */
TARGET static void ISA(columns_chunk)(const struct head *h, int i0, int i1, float *sums, float *scratch) {
  const int d = h->d, nk = h->nk;
  float *panel = scratch, *lanes = scratch + (int64_t)d * PANEL, *bias = lanes + (int64_t)nk * LANES;
  memset(lanes, 0, sizeof(float) * (size_t)nk * LANES);
  for (int i = i0; i < i1; i += PANEL) {
    const int n = i1 - i < PANEL ? i1 - i : PANEL;
    ISA(pack)(h->q + i * h->sq, h->sq, n, d, panel);
    float lse[PANEL];
    for (int l = 0; l < PANEL; l++) lse[l] = l < n ? h->lse[i + l] : INFINITY;
    const VEC l0 = LOAD(lse), l1 = LOAD(lse + LANES);
    VEC ent0 = (VEC){0}, ent1 = (VEC){0};
    int last = nk;
    if (h->causal && i + n + h->offset < nk) last = i + n + h->offset;
    for (int j = 0; j < last; j += ROWS) {
      const int rows = last - j < ROWS ? last - j : ROWS;
      if (h->bias) {
        float top = -INFINITY;
        for (int l = 0; l < PANEL; l++) {
          const float *b = h->bias + (i + (l < n ? l : n - 1)) * h->sb + j;
          for (int r = 0; r < rows; r++) {
            bias[r * PANEL + l] = b[r];
            top = b[r] > top ? b[r] : top;
          }
        }
        if (top <= HIDDEN) continue;
      }
      VEC acc[ROWS][2];
      ISA(tile)(h->k + j * h->sk, h->sk, rows, d, panel, acc);
      for (int r = 0; r < rows; r++) {
        VEC s0 = acc[r][0] * h->scale, s1 = acc[r][1] * h->scale;
        if (h->bias) {
          s0 += LOAD(bias + r * PANEL);
          s1 += LOAD(bias + r * PANEL + LANES);
        }
        VEC x0 = ISA(vmax)(s0 - l0, FLOOR); /* also turns -inf (padding queries, masks) into a zero weight */
        VEC x1 = ISA(vmax)(s1 - l1, FLOOR);
        if (h->causal && j + r > i + h->offset)
          for (int l = 0; l < n && i + l + h->offset < j + r; l++) {
            if (l < LANES) x0[l] = FLOOR;
            else x1[l - LANES] = FLOOR;
          }
        VEC e0 = ISA(vexp)(x0), e1 = ISA(vexp)(x1);
        ent0 -= e0 * x0;
        ent1 -= e1 * x1;
        float *c = lanes + (int64_t)(j + r) * LANES;
        STORE(c, LOAD(c) + e0 + e1);
      }
    }
    float ent[PANEL];
    STORE(ent, ent0);
    STORE(ent + LANES, ent1);
    for (int l = 0; l < n; l++) h->entropy[i + l] = ent[l];
  }
  for (int j = 0; j < nk; j++) {
    float s = 0;
    for (int l = 0; l < LANES; l++) s += lanes[(int64_t)j * LANES + l];
    sums[j] = s;
  }
}

/* out[j] = |R x_j| for n rows x_j; R is d x d, upper triangular when `triangular`. */
TARGET static void ISA(norms_rows)(const float *x, int64_t stride, int n, int d, const float *R, float *out,
                                   float *panel) {
  for (int i = 0; i < n; i += PANEL) {
    const int m = n - i < PANEL ? n - i : PANEL;
    ISA(pack)(x + i * stride, stride, m, d, panel);
    VEC s0 = (VEC){0}, s1 = (VEC){0};
    for (int r = 0; r < d; r += ROWS) {
      const int rows = d - r < ROWS ? d - r : ROWS;
      VEC acc[ROWS][2];
      /* rows r.. of an upper triangular R start at column r */
      ISA(tile)(R + (int64_t)r * d + r, d, rows, d - r, panel + (int64_t)r * PANEL, acc);
      for (int t = 0; t < rows; t++) {
        s0 += acc[t][0] * acc[t][0];
        s1 += acc[t][1] * acc[t][1];
      }
    }
    float s[PANEL];
    STORE(s, s0);
    STORE(s + LANES, s1);
    for (int l = 0; l < m; l++) out[i + l] = sqrtf(s[l]);
  }
}

/* gram[r * d + c] = sum_i keep_i x_i[r] x_i[c] over n rows. `scratch` holds GRAM_BLOCK padded rows and the padded sum. */
TARGET static void ISA(gram_rows)(const float *x, int64_t stride, int n, int d, const uint8_t *keep, float *gram,
                                  float *scratch) {
  const int wide = (d + PANEL - 1) / PANEL * PANEL, tall = (d + ROWS - 1) / ROWS * ROWS;
  const int width = wide > tall ? wide : tall;
  float *block = scratch, *sum = scratch + (int64_t)GRAM_BLOCK * width;
  memset(sum, 0, sizeof(float) * (size_t)tall * (size_t)wide);
  for (int i = 0; i < n; i += GRAM_BLOCK) {
    int m = 0;
    for (int l = i; l < n && l < i + GRAM_BLOCK; l++) {
      if (!keep[l]) continue;
      float *row = block + (int64_t)m++ * width;
      memcpy(row, x + l * stride, sizeof(float) * (size_t)d);
      memset(row + d, 0, sizeof(float) * (size_t)(width - d));
    }
    for (int r = 0; r < d; r += ROWS)
      for (int c = r / PANEL * PANEL; c < d; c += PANEL) { /* the upper triangle; mirrored below */
        VEC a[ROWS][2];
#pragma GCC unroll 16
        for (int t = 0; t < ROWS; t++) a[t][0] = a[t][1] = (VEC){0};
        for (int l = 0; l < m; l++) {
          const float *row = block + (int64_t)l * width;
          const VEC x0 = LOAD(row + c), x1 = LOAD(row + c + LANES);
#pragma GCC unroll 16
          for (int t = 0; t < ROWS; t++) {
            const VEC w = (VEC){0} + row[r + t];
            a[t][0] += w * x0;
            a[t][1] += w * x1;
          }
        }
#pragma GCC unroll 16
        for (int t = 0; t < ROWS; t++) {
          float *out = sum + (int64_t)(r + t) * wide + c;
          STORE(out, LOAD(out) + a[t][0]);
          STORE(out + LANES, LOAD(out + LANES) + a[t][1]);
        }
      }
  }
  for (int r = 0; r < d; r++)
    for (int c = r; c < d; c++) gram[(int64_t)r * d + c] = gram[(int64_t)c * d + r] = sum[(int64_t)r * wide + c];
}

#undef STORE
#undef LOAD
#undef VEC
#undef PANEL
