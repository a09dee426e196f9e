"""When do reasoning features appear? Their nearest decoder rows in the SAEs of earlier training stages."""
