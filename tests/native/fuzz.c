/* Sends random and mutated segments through the compiled coder and the predictive one, random latents through the
 * compiled prior, and random latents to samples, under sanitisers: `make check-native`. Argument: the number of
 * segments (default 100,000). Any finding aborts. So does a segment that was not mutated and does not come back as it
 * was encoded, and a sample that plain loops find otherwise. The words of predicted segments have a
 * digest, which is the same on every machine. */
#include <stdio.h>

#include "../../bitstream/csrc/coder.h"
#include "../../bitstream/csrc/predictive.h"
#include "../../bitstream/csrc/reconstruction.h"
#include "random.h"

enum { MOST = 96, CHANNELS = 64, WORDS = 5 * MOST + 64, TABLES = 2048 };

static uint32_t *cumulated, starts[TABLES + CHANNELS], entries[TABLES + CHANNELS];
static uint16_t coarse[(TABLES + CHANNELS) * COARSE];
static uint8_t raw_bits[TABLES + CHANNELS];

/* Makes tables of random sizes. Their random frequencies are at least 1 and sum to 65536. */
static Tables make_tables(void) {
    size_t used = 0;
    cumulated = malloc(sizeof *cumulated * (TABLES + CHANNELS) * 1032);
    uint32_t wide = 1; /* The sixteen tables of a scale index have one size. */
    for (uint32_t t = 0; t < TABLES + CHANNELS; t++) {
        if (t % 16 == 0) wide = 1 + any(any(16) ? 12 : 500);
        const uint32_t reach = t < TABLES ? wide : 63;
        uint32_t left = 65536, *row = cumulated + used;
        entries[t] = 2 * reach + 3, starts[t] = (uint32_t)used, row[0] = 0;
        for (uint32_t e = 0; e < entries[t]; e++) {
            const uint32_t rest = entries[t] - e - 1, most = (left - rest) / (any(4) ? 3 : 1) + 1;
            const uint32_t f = rest ? 1 + any(most < left - rest ? most : left - rest) : left;
            left -= f, row[e + 1] = row[e] + f;
        }
        for (uint32_t i = 0, e = 0; i < COARSE; i++) {
            while (row[e + 1] <= i * 256) e++;
            coarse[t * COARSE + i] = (uint16_t)e;
        }
        used += entries[t] + 1;
    }
    for (uint32_t t = 1024; t < TABLES; t++) raw_bits[t] = (uint8_t)(1 + any(11));
    const int32_t reach = 1 << 23;
    return (Tables){cumulated, starts, coarse, entries, raw_bits, TABLES, 24, -reach, reach - 1};
}

static void segment(const Tables *t) {
    const uint32_t count = 1 + any(MOST), first = TABLES + any(CHANNELS - 2);
    int32_t values[MOST], table[MOST], mean[MOST], z[6], got[MOST], got_z[6];
    Pass pass = {values, table, mean, count};
    Sorted sorted[MOST];
    uint32_t *words = malloc(sizeof *words * WORDS);
    for (uint32_t i = 0; i < count; i++) {
        table[i] = (int32_t)any(TABLES),
        mean[i] = any(9) ? (int32_t)any(1 << 12) - (1 << 11) : (int32_t)any(1 << 25) - (1 << 24);
    }
    /* Noise decodes to latents that are on the trellis, or to what no encoder writes. */
    for (uint32_t i = 0; i < WORDS; i++) words[i] = any(0xFFFFFFFFu);
    Coder noise = {UINT64_C(1) << 40 | any(0xFFFFFFFFu), words, 0, WORDS};
    if (perigee_pop_pass(&noise, t, &pass, sorted)) {
        free(words);
        return;
    }
    for (int i = 0; i < 6; i++) z[i] = (int32_t)any(129);
    Coder c = {0, words, WORDS, WORDS};
    int bad =
        perigee_push_passes(&c, t, 1, &pass, sorted) || perigee_push_runs(&c, t, first, 2, 3, z) || perigee_flush(&c);
    if (bad) abort();
    const uint64_t length = WORDS - c.position;
    const uint32_t kind = any(8), kept = kind == 1 ? any((uint32_t)length + 1) : (uint32_t)length;
    uint32_t *cut =
        malloc(sizeof *cut *
               (kept ? kept : 1)); /* exactly as long as the words, so that the sanitiser sees a read beyond them */
    memcpy(cut, words + c.position, sizeof *cut * kept);
    if (kind > 1 && kept) /* Most segments get flipped bits or words of noise. */
        for (uint32_t i = 1 + any(4); i--;) {
            uint32_t *word = &cut[any(kept)];
            *word = kind < 6 ? *word ^ 1u << any(32) : any(0xFFFFFFFFu);
        }
    if (kind == 7) /* This kind gets predictions that no prior makes. */
        for (uint32_t i = 0; i < count; i++) table[i] = (int32_t)any(0xFFFFFFFFu);
    Coder d = {0, cut, 0, kept};
    while (d.position < kept && d.state < UINT64_C(1) << 32) d.state = d.state << 32 | cut[d.position++];
    perigee_pop_runs(&d, t, first, 2, 3, got_z);
    pass.values = got;
    const int status = perigee_pop_pass(&d, t, &pass, sorted);
    if (kind == 0 && (status || memcmp(got, values, sizeof *got * count) || memcmp(got_z, z, sizeof z))) abort();
    if (kind == 7) perigee_push_passes(&d, t, 1, &pass, sorted);
    free(cut), free(words);
}

static void *random_bytes(size_t bytes) {
    uint8_t *out = malloc(bytes);
    fill(out, bytes);
    return out;
}

static Layer make_layer(int32_t packing, int32_t inputs, int32_t outputs, int32_t kernel) {
    const size_t count = (size_t)outputs * (size_t)(kernel > 1 ? kernel * kernel : inputs);
    int8_t *weights = malloc(count);
    for (size_t i = 0; i < count; i++) weights[i] = (int8_t)((int32_t)any(255) - 127);
    const Layer out = pack(packing, weights, inputs, outputs, kernel);
    free(weights);
    return out;
}

/* Computes every pass of a prior of odd sizes, in exactly the memory that it asks for. */
static void prior(int32_t packing) {
    const int32_t slices = 1 + (int32_t)any(3), hyper = 1 + (int32_t)any(70), context = 1 + (int32_t)any(70);
    const int32_t head = 1 + (int32_t)any(70), hyper_latents = 1 + (int32_t)any(40);
    const uint32_t rows = 4 * (1 + any(4)), cols = 4 * (1 + any(4));
    const int32_t sides = 1 + (int32_t)any(2); /* the latents alone, or their magnitudes too */
    const int32_t views = (int32_t)any(3), wide = (int32_t)any(2), planes = 1 + (int32_t)any(2);
    uint8_t magnitudes[128] = {0};
    for (int i = 1; i < 128; i++) magnitudes[i] = (uint8_t)any(128);
    int32_t first[5] = {0};
    for (int32_t i = 0; i < slices; i++) first[i + 1] = first[i] + 1 + (int32_t)any(50);
    Layer layers[PASSES + 6 * PER_PASS] = {{0}};
    layers[UP1] = make_layer(packing, hyper_latents, 4 * hyper, 1);
    layers[DEPTH1] = make_layer(packing, hyper, hyper, 3);
    layers[UP2] = make_layer(packing, hyper, 4 * hyper, 1);
    layers[DEPTH2] = make_layer(packing, hyper, hyper, 3);
    layers[MIX] = make_layer(packing, hyper + planes, hyper, 1);
    for (int32_t k = 0; k < 2 * slices; k++) {
        const int32_t own = views * (first[k / 2 + 1] - first[k / 2]);
        const int32_t seen = own + sides * (k % 2 ? first[k / 2 + 1] : first[k / 2]);
        Layer *l = layers + PASSES + PER_PASS * k;
        if (seen) l[CONTEXT] = make_layer(packing, seen, context, 1);
        if (seen) l[DEPTH] = make_layer(packing, context, context, 5);
        l[HEAD1] = make_layer(packing, hyper + (seen ? context : 0), head, 1);
        l[HEAD2] = make_layer(packing, head, head, 1);
        l[OUT] = make_layer(packing, head, 2 * (first[k / 2 + 1] - first[k / 2]), 1);
    }
    const Model m = {.latents = first[slices],
                     .hyper_latents = hyper_latents,
                     .hyper = hyper,
                     .context = context,
                     .head = head,
                     .passes = 2 * slices,
                     .packing = packing,
                     .planes = planes,
                     .references = views,
                     .scales = wide ? 128 : 64,
                     .magnitude_max = 127,
                     .starts = first,
                     .layers = layers,
                     .magnitudes = sides == 2 ? magnitudes : NULL};
    const size_t positions = (size_t)rows * cols;
    int32_t *z = malloc(sizeof *z * positions / 16 * (size_t)hyper_latents);
    for (size_t i = 0; i < positions / 16 * (size_t)hyper_latents; i++) z[i] = (int32_t)any(129) - 64;
    int32_t *q = malloc(sizeof *q * positions * (size_t)m.latents);
    for (size_t i = 0; i < positions * (size_t)m.latents; i++) q[i] = (int32_t)any(65536) - 32768;
    uint8_t *shifts = random_bytes((size_t)m.latents);
    int16_t *base = malloc(sizeof *base * (size_t)m.latents);
    for (int32_t c = 0; c < m.latents; c++) shifts[c] %= 14, base[c] = (int16_t)((int32_t)any(300) - 150);
    uint8_t *earlier = random_bytes((size_t)(views * m.latents) * positions + 1);
    for (size_t i = 0; i < (size_t)(views * m.latents) * positions; i++) earlier[i] %= 128;
    Patch p = {.model = &m,
               .symbols = q,
               .shifts = wide ? shifts : NULL,
               .base = wide ? base : NULL,
               .views = views ? earlier : NULL,
               .features = random_bytes(positions * padded((size_t)hyper)),
               .given = random_bytes(positions * perigee_prior_given(&m)),
               .scratch = random_bytes(perigee_prior_scratch(&m, rows, cols)),
               .rows = rows,
               .cols = cols};
    const uint8_t values[2] = {(uint8_t)any(256), (uint8_t)any(256)};
    if (perigee_prior_features(&p, z, values)) abort(); /* a false alarm */
    for (uint32_t k = 0; k < (uint32_t)m.passes; k++) {
        p.channels = 1 + any((uint32_t)(first[k / 2 + 1] - first[k / 2]));
        const size_t size = p.channels * positions / 2;
        p.table = malloc(sizeof *p.table * size), p.mean = malloc(sizeof *p.mean * size);
        if (perigee_prior_pass(&p, k)) abort(); /* a false alarm */
        for (size_t i = 0; i < size; i++)
            if ((uint32_t)p.table[i] >= TABLES || p.mean[i] < OUT_MIN * 8192 || p.mean[i] > OUT_MAX * 8192) abort();
        free(p.table), free(p.mean);
    }
    for (int i = 0; i < PASSES + 6 * PER_PASS; i++) unpack(layers[i]);
    free(z), free(q), free(shifts), free(base), free(earlier), free(p.scratch), free(p.features), free(p.given);
}

static int64_t rounded_shift(int64_t x, int bits) { return (x + ((int64_t)1 << (bits - 1))) >> bits; }

static int64_t clamped(int64_t x, int64_t low, int64_t high) { return x < low ? low : x > high ? high : x; }

/* Multiplies 16 values, which are `stride` apart, with the transpose of a matrix. */
static void plain_product(const int16_t *matrix, int64_t *x, size_t stride) {
    int64_t y[BLOCK] = {0};
    for (int j = 0; j < BLOCK; j++)
        for (int u = 0; u < BLOCK; u++) y[j] += matrix[u * BLOCK + j] * x[(size_t)u * stride];
    for (int j = 0; j < BLOCK; j++) x[(size_t)j * stride] = rounded_shift(y[j], 14);
}

static void plain_inverse(const Transform *t, int64_t *x, size_t length, size_t stride) {
    for (size_t i = 0; i < length; i += BLOCK) plain_product(t->cosine, x + i * stride, stride);
    for (size_t i = BLOCK / 2; i + BLOCK < length; i += BLOCK) plain_product(t->lap, x + i * stride, stride);
}

/* Turns random latents into samples and compares them with what section 21 of the format gives step by step. */
static void reconstruction(void) {
    const uint32_t rows = 1 + any(4), cols = 1 + any(4), positions = rows * cols, size = LATENTS * positions;
    const uint32_t height = BLOCK * rows, width = BLOCK * cols, bands = 1 + any(32), reach = 1u << any(24);
    const uint32_t step = any(2) ? 1u << any(31) : 1 + any(1u << 20);
    uint8_t order[LATENTS];
    int16_t lap[LATENTS], cosine[LATENTS], *matrix = malloc(sizeof *matrix * bands * bands);
    for (int i = 0; i < LATENTS; i++) {
        order[i] = (uint8_t)(167 * i + 13), lap[i] = (int16_t)((int)any(16383) - 8191);
        cosine[i] = i / BLOCK < 3 ? (int16_t)((int)any(65536) - 32768) : 0; /* as large as few can be */
    }
    int8_t *centroids = random_bytes(64 * 32);
    for (int i = 0; i < 64 * 32; i++) centroids[i] /= 2;
    const Transform t = {order, lap, cosine, centroids};
    int32_t *q = malloc(sizeof *q * size), *mean = malloc(sizeof *mean * size), *index = malloc(sizeof *index * size);
    int32_t *plane = malloc(sizeof *plane * size), *samples = malloc(sizeof *samples * bands * size);
    int64_t *plain = malloc(sizeof *plain * size);
    Number *work = malloc(sizeof *work * 2 * size);
    for (uint32_t i = 0; i < size; i++) {
        q[i] = (int32_t)any(2 * reach) - (int32_t)reach, mean[i] = (int32_t)any(16 * reach) - (int32_t)(8 * reach);
        index[i] = (int32_t)any(128);
        const uint32_t place = order[i / positions], row = i % positions / cols, col = i % cols;
        const int64_t distance = 8 * (int64_t)q[i] - mean[i], away = distance < 0 ? -distance : distance;
        const int64_t bucket = (away + 2) >> 2 < 31 ? (away + 2) >> 2 : 31;
        const int64_t inward = index[i] < 64 ? centroids[index[i] * 32 + bucket] : 0;
        const int64_t within = 64 * (int64_t)q[i] - (distance > 0 ? inward : distance < 0 ? -inward : 0);
        plain[(BLOCK * row + place / BLOCK) * width + BLOCK * col + place % BLOCK] =
            clamped(rounded_shift(within * step, 15), -((int64_t)1 << 34), (int64_t)1 << 34);
    }
    for (uint32_t i = 0; i < width; i++) plain_inverse(&t, plain + i, height, width);
    for (uint32_t i = 0; i < height; i++) plain_inverse(&t, plain + i * width, width, 1);
    perigee_plane(&t, rows, cols, q, mean, index, step, work, plane);
    for (uint32_t i = 0; i < size; i++)
        if (plane[i] != clamped(plain[i], INT32_MIN, INT32_MAX)) abort();
    int32_t *planes = malloc(sizeof *planes * bands * size), counts[32];
    uint32_t scale[32];
    for (uint32_t i = 0; i < bands * size; i++) planes[i] = plane[any(size)];
    for (uint32_t i = 0; i < bands * bands; i++) matrix[i] = (int16_t)((int)any(65536) - 32768);
    for (uint32_t b = 0; b < bands; b++) counts[b] = (int32_t)(any(1u << 31) * 2 + any(2)), scale[b] = any(1u << 25);
    const int64_t low = -(int64_t)any(32769), high = any(65536);
    perigee_samples(bands, size, matrix, counts, scale, low, high, planes, samples);
    for (uint32_t b = 0; b < bands; b++)
        for (uint32_t i = 0; i < size; i++) {
            int64_t sum = 0;
            for (uint32_t c = 0; c < bands; c++) sum += (int64_t)matrix[b * bands + c] * planes[c * size + i];
            sum = clamped(rounded_shift(sum, 14), -((int64_t)1 << 34), (int64_t)1 << 34);
            if (samples[b * size + i] != clamped(rounded_shift(sum * scale[b], 28) + counts[b], low, high)) abort();
        }
    free(matrix), free(centroids), free(q), free(mean), free(index), free(plane), free(samples), free(plain),
        free(work);
    free(planes);
}

enum { SIDE = 7, BANDS = 3 };

static uint64_t digest = 14695981039346656037u; /* FNV-1a over all words of the predictive coder */

/* The tables of a curve of random steps, which the coder must take as it takes that of the format. */
static void make_curve(uint32_t *shares, uint16_t *logs, int64_t *sharpness, int64_t *spread) {
    uint32_t share = 0;
    for (int i = 0; i < CURVE_SIZE; i++) {
        shares[i] = i == CURVE_SIZE - 1 ? 1u << PRECISION : share;
        share += any(((1u << PRECISION) - share) / (uint32_t)(CURVE_SIZE - i) * 2 + 1);
        if (share > 1u << PRECISION) share = 1u << PRECISION;
    }
    for (int i = 0; i < LOGS_SIZE; i++) {
        int bits = 0;
        while (i >> bits) bits++;
        logs[i] = (uint16_t)(64 * bits);
    }
    for (int i = 0; i < LEVELS; i++)
        sharpness[i] = INT64_C(1) << (20 + i / 96), spread[i] = INT64_C(1) << (30 - i / 96);
}

/* The planes of a patch: samples and errors of each band, with their padding. */
typedef struct {
    int32_t *samples[BANDS];
    uint16_t *errors[BANDS];
} Planes;

/* Begins a band of `planes`: what stands above its first row has the code `start` and no error. */
static Band begin(const Planes *planes, const Band *like, uint32_t number, int32_t start) {
    const uint32_t first = 2 * like->stride + 2;
    Band band = *like;
    for (uint32_t i = 0; i < 2 * like->stride; i++) planes->samples[number][i] = start, planes->errors[number][i] = 0;
    band.samples = planes->samples[number] + first, band.errors = planes->errors[number] + first;
    for (uint32_t k = 0; k < band.count; k++) band.before[k] = planes->samples[number - 1 - k] + first;
    band.near_errors = band.count ? planes->errors[number - 1] + first : 0;
    return band;
}

/* Sends words of noise through the predictive decoder. What it makes of them is in range, and comes back when it is
 * coded again. */
static void predictive(const Curve *curve) {
    const uint32_t rows = 1 + any(SIDE), cols = 1 + any(SIDE), stride = cols + 4, bands = 1 + any(BANDS),
                   size = any(300);
    const uint32_t plane = (rows + 3) * stride, room = 2 * BANDS * SIDE * SIDE + 4;
    uint32_t *words = malloc(sizeof *words * (size + 1)), *back = malloc(sizeof *back * room);
    uint64_t *scratch = malloc(perigee_predictive_scratch(cols) / 8 * 8 + 8);
    Planes one, two;
    int16_t weights[BANDS][TAPS_MAX];
    int32_t starts[BANDS];
    Interval *symbols[BANDS];
    int64_t counts[BANDS];
    Band like[BANDS];
    for (uint32_t i = 0; i < size; i++) words[i] = any(9) ? any(0xFFFFFFFFu) : 0;
    Coder noise = {UINT64_C(1) << (32 + any(31)) | any(0xFFFFFFFFu), words, 0, size};
    for (uint32_t b = 0; b < bands; b++) {
        const int32_t top = (int32_t)(any(4) ? any(65536) : any(3));
        starts[b] = (int32_t)any((uint32_t)top + 1);
        one.samples[b] = malloc(sizeof(int32_t) * plane), two.samples[b] = malloc(sizeof(int32_t) * plane);
        one.errors[b] = malloc(sizeof(uint16_t) * plane), two.errors[b] = malloc(sizeof(uint16_t) * plane);
        symbols[b] = malloc(sizeof(Interval) * 2 * rows * cols);
        for (int32_t t = 0, left = 32767; t < TAPS_MAX; t++) {
            const int32_t most = any(3) ? left / 4 : left, w = (int32_t)any((uint32_t)(2 * most + 1)) - most;
            weights[b][t] = (int16_t)w, left -= w < 0 ? -w : w;
        }
        like[b] = (Band){.weights = weights[b], .rows = rows, .cols = cols, .stride = stride, .top = top};
        like[b].count = any(b + 1), like[b].repeats = any(2);
        const Band band = begin(&one, &like[b], b, starts[b]);
        perigee_pop_band(&noise, curve, &band, scratch);
        for (uint32_t r = 0; r < rows; r++)
            for (uint32_t c = 0; c < cols; c++)
                if (band.samples[r * stride + c] < 0 || band.samples[r * stride + c] > top) abort();
    }
    Coder coder = {0, back, room, room};
    for (uint32_t b = 0; b < bands; b++) {
        const Band band = begin(&one, &like[b], b, starts[b]);
        counts[b] = perigee_model_band(curve, &band, symbols[b], scratch);
    }
    for (uint32_t b = bands; b--;)
        if (perigee_push_intervals(&coder, symbols[b], (uint64_t)counts[b])) abort();
    if (perigee_flush(&coder)) abort();
    for (uint64_t i = coder.position; i < room; i++) digest = (digest ^ back[i]) * 1099511628211u;
    Coder again = {0, back, coder.position, room};
    while (again.position < room && again.state < UINT64_C(1) << 32)
        again.state = again.state << 32 | back[again.position++];
    for (uint32_t b = 0; b < bands; b++) {
        const Band band = begin(&two, &like[b], b, starts[b]);
        perigee_pop_band(&again, curve, &band, scratch);
        for (uint32_t r = 0; r < rows; r++)
            if (memcmp(band.samples + r * stride, one.samples[b] + (r + 2) * stride + 2, sizeof(int32_t) * cols))
                abort();
    }
    if (again.state || again.position < room) abort();
    for (uint32_t b = 0; b < bands; b++) {
        free(one.samples[b]), free(two.samples[b]), free(one.errors[b]), free(two.errors[b]);
        free(symbols[b]);
    }
    free(words), free(back), free(scratch);
}

int main(int argc, char **argv) {
    const long count = argc > 1 ? atol(argv[1]) : 100000;
    const Tables tables = make_tables();
    for (long i = 0; i < count; i++) segment(&tables);
    const uint32_t packings = perigee_prior_packings();
    for (long i = 0, done = 0; done < count / 1000 + 1; i++)
        if (packings >> i % 4 & 1) prior((int32_t)(i % 4)), done++;
    for (long i = 0; i < count / 1000 + 1; i++) reconstruction();
    static uint32_t shares[CURVE_SIZE];
    static uint16_t logs[LOGS_SIZE];
    static int64_t sharpness[LEVELS], spread[LEVELS];
    seed = 88172645463325252u; /* How many priors there were depends on the processor. */
    for (long i = 0; i < count; i++) {
        if (i % 1000 == 0) make_curve(shares, logs, sharpness, spread);
        predictive(&(Curve){shares, logs, sharpness, spread});
    }
    printf(
        "%ld segments and as many predicted ones (words %016llx), %ld priors in packings of mask %u, as many patches: "
        "no finding\n",
        count, (unsigned long long)digest, count / 1000 + 1, packings);
    free(cumulated);
    return 0;
}
