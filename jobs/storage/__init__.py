"""Bytes on local disks and object stores, behind one API."""
