/* Removes a folder that a test has made, with the files in it. */
#ifndef TAMIS_TESTS_FOLDER_H
#define TAMIS_TESTS_FOLDER_H
#include <dirent.h>
#include <stdio.h>
#include <unistd.h>

static inline void remove_folder(const char *path) {
  DIR *listing = opendir(path);
  if (listing == NULL) return;
  for (struct dirent *entry; (entry = readdir(listing)) != NULL;) {
    char name[512];
    snprintf(name, sizeof name, "%s/%s", path, entry->d_name);
    unlink(name);
  }
  closedir(listing);
  rmdir(path);
}
#endif
