"""The checks of ``check_loss`` in oracle 1, in the report's order, and the diagnoses that each can make. No imports."""

LOSS_CHECKS: dict[str, tuple[str, ...]] = {
    "prediction": ("PREDICTION_DETACHED",),
    "path": ("TIME_REVERSED",),
    "velocity": ("VELOCITY_SIGN", "PATH_TANGENT_MISMATCH"),
    "tangent": (
        "R_AND_T_SWAPPED", "R_MOVES", "SPATIAL_TANGENT_MISSING", "TIME_TANGENT_MISSING", "TRANSPOSED_JACOBIAN",
        "TANGENT_NOT_VELOCITY", "R_DERIVATIVE_AT_WRONG_POINT",
    ),
    "coefficient": ("COEFFICIENT", "INTERVAL_SIGN", "INTERVAL_NOT_T_MINUS_R"),
    "target": ("UNKNOWN_FORMULA",),
    "stop-gradient": ("TARGET_NOT_DETACHED",),
    "dropout": ("DROPOUT_MISMATCH",),
    "weight": (
        "WEIGHT_POWER", "WEIGHT_SQUARED_TWICE", "WEIGHT_PER_ELEMENT", "WEIGHT_NOT_DETACHED", "WEIGHT_BATCH_COUPLED",
        "REDUCTION_MEAN",
    ),
    "clipping": ("TARGET_CLIPPED",),
    "precision": ("TARGET_LOW_PRECISION", "FINITE_DIFFERENCE_COARSE"),
    "times order": ("R_GREATER_THAN_T",),
    "times range": ("TIMES_OUT_OF_RANGE",),
    "times mix": (
        "RATIO_MISMATCH", "RATIO_INVERTED", "NEVER_R_NEQ_T", "NEVER_R_EQ_T", "PER_BATCH_COIN", "MASKS_CORRELATED",
    ),
    "guidance": (
        "GUIDED_TARGET_UNGUIDED_TANGENT", "NULL_BRANCH_CONDITIONAL", "KAPPA_MISSING", "GUIDANCE_LOST_ON_R_EQ_T",
        "GUIDANCE_ON_NULL_ROWS",
    ),
}  # fmt: skip
