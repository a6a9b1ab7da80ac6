/*
 * The functions of the service, behind their source: all of the resident kernel that the compiler
 * cannot know before. Their names are given qualified, and every other name here begins with gd, as
 * the source may have made a macro of any other. Before it is defined
 *
 *   gd_type_of_0, ...  the type of each function's pointer
 *   GD_FUNCTIONS(X)    X(number, ::function, team), one after the other
 */
#define GD_TABLE(gd_number, gd_function, gd_team)                                                 \
    static_assert(gd_service::gd_described<gd_type_of_##gd_number>::gd_plain,                     \
                  "an argument of a service's function is aligned to at most 16 bytes");          \
    extern "C" __device__ const auto gd_function_##gd_number =                                    \
        gd_service::gd_tabled<gd_type_of_##gd_number, gd_number>::gd_value;
GD_FUNCTIONS(GD_TABLE)

namespace gd_service {

#define GD_LARGEST(gd_number, gd_function, gd_team)                                               \
    gd_longest = gd_longest < gd_described<gd_type_of_##gd_number>::gd_size                       \
                     ? gd_described<gd_type_of_##gd_number>::gd_size : gd_longest;
__device__ inline constexpr unsigned gd_quarters()
{
    unsigned gd_longest = gd_in_packet;
    GD_FUNCTIONS(GD_LARGEST)
    return (gd_longest + 15) / 16;
}

__shared__ gd_quarter gd_words[gd_quarters()];

__device__ inline gd_quarter *gd_arguments()
{
    return gd_words;
}

__device__ inline unsigned long long gd_run(unsigned gd_wanted)
{
    switch (gd_wanted) {
#define GD_RUN(gd_number, gd_function, gd_team)                                                   \
    case gd_number: return gd_run_one<gd_team>((gd_type_of_##gd_number)&gd_function);
        GD_FUNCTIONS(GD_RUN)
    }
    return 0;
}

__device__ inline unsigned gd_far(unsigned gd_wanted)
{
    switch (gd_wanted) {
#define GD_FAR(gd_number, gd_function, gd_team)                                                   \
    case gd_number:                                                                               \
        return gd_team == gd_of_grid && gd_described<gd_type_of_##gd_number>::gd_size > gd_in_packet    \
                   ? gd_described<gd_type_of_##gd_number>::gd_size : 0;
        GD_FUNCTIONS(GD_FAR)
    }
    return 0;
}

__device__ inline bool gd_writes(unsigned gd_wanted)
{
    switch (gd_wanted) {
#define GD_WRITES(gd_number, gd_function, gd_team)                                                \
    case gd_number: return gd_described<gd_type_of_##gd_number>::gd_writes;
        GD_FUNCTIONS(GD_WRITES)
    }
    return true;
}

__device__ inline unsigned long long gd_serve(unsigned gd_wanted, gd_lane &gd_to, unsigned gd_row,
                                              unsigned &gd_code)
{
    unsigned long long gd_result = 0;
    switch (gd_wanted) {
#define GD_SERVE(gd_number, gd_function, gd_team)                                                 \
    case gd_number:                                                                               \
        gd_result = gd_serve_one<gd_number, gd_team>((gd_type_of_##gd_number)&gd_function, gd_to, \
                                                     gd_row);                                     \
        break;
        GD_FUNCTIONS(GD_SERVE)
    default:
        gd_code = gd_missing(gd_wanted);
    }
    return gd_result;
}

}  // namespace gd_service

extern "C" __global__ void gd_resident(
    const unsigned *gd_packets, gd_service::gd_quarter *gd_replies, const unsigned *gd_control,
    gd_service::gd_ends *gd_ending, unsigned char *gd_boards, unsigned gd_board_size,
    unsigned gd_slots, unsigned gd_blocks, unsigned gd_idle_sleep, unsigned long long gd_idle_after,
    unsigned long long gd_lifetime, volatile unsigned *gd_told, unsigned *gd_wake,
    unsigned long long gd_nap_after, unsigned gd_turn, unsigned gd_round, unsigned long long gd_slice)
{
    gd_service::gd_reside(gd_packets, gd_replies, gd_control, gd_ending, gd_boards, gd_board_size,
                          gd_slots, gd_blocks, gd_idle_sleep, gd_idle_after, gd_lifetime, gd_told,
                          gd_wake, gd_nap_after, gd_turn, gd_round, gd_slice);
}
