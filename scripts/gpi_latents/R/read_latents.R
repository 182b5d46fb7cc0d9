# The workflow's results in R: the latents as an array, the index table as a data frame. Base R only; to compare the
# latents with the digests in the table it needs the package digest.

read_latents <- function(results = "results", stacked = file.path(results, "latents.npy"), check = TRUE) {
  # Read all latents and the table that describes them.
  #
  # Arguments:
  #   results: the folder of the results.
  #   stacked: the file that the workflow's key `stacked` names, which has to end in .npy.
  #   check:   compare each latent with its SHA-256 in the table, if the package digest is installed.
  #
  # Returns a list of
  #   R:     array of numbers (N, C, H, W): R[i, , , ] is the latent of line i of the index. Memory: 8 bytes a number.
  #   index: data frame of N lines. Its column `row` counts from 0, as in Python. `id`, `image`, the prompts, digests
  #          and notes are texts as they are written. Of every other column, blank cells and those that say NA are
  #          missing. It is logical if all others say TRUE or FALSE, integer or numeric if all are numbers, else text,
  #          without blanks around it, also with codes such as 06 and with integers that R cannot tell apart (2^53 and
  #          beyond).
  #
  # Stops if a file is missing or damaged, or if the two do not belong together. Warns if items failed (key on_error).
  index_file <- file.path(results, "index.csv")
  if (!file.exists(index_file)) {
    stop(index_file, " is missing: run snakemake without a target, which makes it", call. = FALSE)
  }
  if (!file.exists(stacked)) {
    stop(stacked, " is missing: write `stacked: results/latents.npy` into config/config.yaml and run snakemake, ",
      "which makes it of the latents that are there",
      call. = FALSE
    )
  }
  index <- read_index(index_file)
  has_digest <- check && requireNamespace("digest", quietly = TRUE)
  if (check && !has_digest) {
    message(
      "The latents were not compared with the digests in ", index_file, ', which needs install.packages("digest")'
    )
  }

  connection <- file(stacked, "rb")
  on.exit(close(connection))
  shape <- read_npy_shape(connection, stacked)
  if (shape[1] != nrow(index)) {
    stop(stacked, " has ", shape[1], " latents, but ", index_file, " ", nrow(index), " rows: one of them is from ",
      "another run, or was changed. Run snakemake again",
      call. = FALSE
    )
  }
  # One latent after the other, so that the numbers are in memory only once.
  R <- array(0, shape)
  size <- prod(shape[-1])
  differs <- logical(shape[1])
  for (i in seq_len(shape[1])) {
    bytes <- readBin(connection, "raw", 4 * size)
    if (length(bytes) < 4 * size) {
      stop(stacked, " is cut short: delete it and run snakemake again", call. = FALSE)
    }
    if (has_digest) {
      differs[i] <- digest::digest(bytes, "sha256", serialize = FALSE) != index$sha256[i]
    }
    values <- readBin(bytes, "numeric", size, size = 4, endian = "little")
    # In the file the last axis runs fastest, in R the first one.
    R[i, , , ] <- aperm(array(values, rev(shape[-1])))
  }
  if (any(differs)) {
    named <- paste0("row ", index$row[differs], ", ", index$id[differs])
    stop(sum(differs), " of ", shape[1], " latents are not those in the index table (",
      paste(utils::head(named, 10), collapse = "; "), if (length(named) > 10) "; ...",
      "): they come from another run, or the table was changed. Run snakemake again",
      call. = FALSE
    )
  }
  failed_file <- file.path(results, "failed.csv")
  failed <- if (file.exists(failed_file)) nrow(utils::read.csv(failed_file, colClasses = "character")) else 0
  if (failed > 0) {
    warning(failed, " of ", failed + shape[1], " ", if (has_draws(index)) "draws" else "items",
      " failed and are not in these results (", failed_file,
      "): if failing goes with treatment or outcome, estimates are biased",
      call. = FALSE
    )
  }
  list(R = R, index = index)
}

read_npy_shape <- function(connection, name) {
  # Read the header of a .npy file (numpy.lib.format) and return (N, C, H, W); what is read next is the first value.
  refuse <- function(...) stop(name, " is not a tensor of this workflow (", ..., ")", call. = FALSE)
  start <- readBin(connection, "raw", 8)
  if (length(start) < 8 || any(start[1:6] != as.raw(c(0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59)))) {
    refuse("no .npy file: write `stacked: results/latents.npy` into config/config.yaml")
  }
  version <- as.integer(start[7])
  if (!version %in% 1:2) {
    refuse("version ", version, " of the .npy format")
  }
  # Two bytes in version 1, four in version 2.
  bytes <- as.integer(readBin(connection, "raw", 2 * version))
  header <- rawToChar(readBin(connection, "raw", sum(bytes * 256^(seq_along(bytes) - 1))))
  entry <- function(key, pattern) {
    found <- regmatches(header, regexec(paste0("'", key, "': *", pattern), header))[[1]]
    if (length(found) == 2) found[2] else "unknown"
  }
  if ((type <- entry("descr", "'([^']*)'")) != "<f4") {
    refuse("its numbers are ", type, ", not little-endian float32, <f4")
  }
  if (entry("fortran_order", "(True|False)") != "False") {
    refuse("its values are in Fortran's order")
  }
  shape <- suppressWarnings(as.numeric(strsplit(entry("shape", "[(]([^)]*)[)]"), ",")[[1]]))
  if (length(shape) != 4 || anyNA(shape)) {
    refuse("its shape is not (N, C, H, W)")
  }
  shape
}

read_index <- function(path) {
  # Read the index table as a data frame of texts, numbers and logicals: the rules of gpi_latents.load.
  index <- utils::read.csv(path,
    colClasses = "character", na.strings = character(0), check.names = FALSE, encoding = "UTF-8"
  )
  if (length(absent <- setdiff(c("row", "id", "sha256"), names(index)))) {
    stop(path, " is not an index table of this workflow: it has no column ", absent[1], call. = FALSE)
  }
  texts <- c("id", "image", "prompt", "negative_prompt", "sha256", "recipe_sha256", "image_sha256", "notes")
  if (has_draws(index)) {
    texts <- c(texts, "item")
  }
  for (name in setdiff(names(index), texts)) {
    index[[name]] <- typed_column(index[[name]])
  }
  if (!identical(as.numeric(index$row), seq_len(nrow(index)) - 1)) {
    stop("The rows of ", path, " are no longer in their order (column row: 0, 1, 2, ...)", call. = FALSE)
  }
  index
}

has_draws <- function(index) {
  # Whether some items have several draws; `item` and `draw` may also be columns of the user's.
  if (!all(c("item", "draw") %in% names(index))) {
    return(FALSE)
  }
  known <- !is.na(index$item)
  id <- index$id[known]
  item <- as.character(index$item[known])
  all(id == item | startsWith(id, paste0(item, "_")))
}

typed_column <- function(texts) {
  # A column of texts as logicals or numbers if all its cells that are not missing are such, else as texts.
  cells <- trimws(texts, whitespace = "[\\h\\v]") # no-break spaces too
  is_missing <- cells %in% c("", "NA", "N/A", "NaN", "nan", "<NA>", "NULL")
  cells[is_missing] <- NA
  filled <- cells[!is_missing]
  whole <- grepl("^[+-]?[0-9]+$", filled)
  if (length(filled) == 0) {
    return(as.numeric(cells))
  }
  if (all(filled %in% c("TRUE", "True", "true", "FALSE", "False", "false"))) {
    return(toupper(cells) == "TRUE")
  }
  is_number <- grepl("^[+-]?([0-9]+[.]?[0-9]*|[.][0-9]+)([eE][+-]?[0-9]+)?$", filled)
  is_code <- grepl("^[+-]?0[0-9]", filled)
  if (!all(is_number) || any(is_code) || any(abs(as.numeric(filled[whole])) >= 2^53)) {
    return(cells)
  }
  numbers <- as.numeric(cells)
  if (all(whole) && all(abs(numbers) <= .Machine$integer.max, na.rm = TRUE)) as.integer(numbers) else numbers
}
